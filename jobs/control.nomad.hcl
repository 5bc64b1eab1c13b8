# A server of SoulBox's control service as a Nomad job.
#
# It holds no secret of its own: Nomad gives the task tokens of Vault and of Consul by its workload identity, renews them, and takes
# them back when it ends. README.md beside this file says how Nomad, Vault and Consul are told once.
#
#   nomad job run -var datacenters='["dc1"]' jobs/control.nomad.hcl
variable "datacenters" {
  type    = list(string)
  default = ["*"]
}

variable "driver" {
  type        = string
  default     = "exec"
  description = "exec, or raw_exec where there is no cgroup v2."
}

variable "soulbox" {
  type        = string
  default     = "/usr/local/bin/soulbox"
  description = "The program, on each client."
}

variable "data_dir" {
  type        = string
  default     = ""
  description = "Folder for the state. Empty: the allocation's own, which ends with it; give a host volume's path for what shall stay."
}

variable "port" {
  type    = number
  default = 7300
}

variable "vault_address" {
  type    = string
  default = "https://active.vault.service.consul:8200"
}

variable "consul_address" {
  type    = string
  default = "127.0.0.1:8500"
}

variable "nomad_address" {
  type        = string
  default     = ""
  description = "Empty: the task API, a socket in the task's secrets folder."
}

job "soulbox-control" {
  type        = "service"
  datacenters = var.datacenters

  group "control" {
    count = 1

    ephemeral_disk {
      sticky  = true
      migrate = true
    }

    network {
      port "api" {
        static = var.port
      }
    }

    service {
      name = "soulbox-control"
      port = "api"

      check {
        type     = "http"
        path     = "/health"
        interval = "5s"
        timeout  = "2s"
      }
    }

    restart {
      attempts = 10
      interval = "10m"
      delay    = "5s"
      mode     = "delay"
    }

    task "server" {
      driver = var.driver

      # Tokens of Vault and of Consul for this task, by its identity.
      vault {
        role = "soulbox-control"
      }
      consul {}

      # The task's own token of Nomad.
      identity {
        env  = true
        file = true
      }

      config {
        command = var.soulbox
        args    = ["server", "-config=${NOMAD_TASK_DIR}/server.hcl"]
      }

      template {
        destination = "local/server.hcl"
        data        = <<-EOH
          listen   = "{{ env "NOMAD_ADDR_api" }}"
          data_dir = "${var.data_dir != "" ? var.data_dir : "{{ env \"NOMAD_ALLOC_DIR\" }}/data/soulbox"}"
          log_json = true

          nomad {
            address    = "${var.nomad_address != "" ? var.nomad_address : "unix://{{ env \"NOMAD_SECRETS_DIR\" }}/api.sock"}"
            token_file = "{{ env "NOMAD_SECRETS_DIR" }}/nomad_token"
          }
          consul {
            address = "${var.consul_address}"
          }
          vault {
            address      = "${var.vault_address}"
            token_file   = "{{ env "NOMAD_SECRETS_DIR" }}/vault_token"
            link_key     = "soulbox/url-keys/links"
            snapshot_key = "soulbox-transit/keys/snapshots"
            audit_key    = "soulbox-transit/keys/audit"
          }
        EOH
      }

      resources {
        cpu    = 500
        memory = 512
      }

      kill_timeout = "20s"
    }
  }
}
