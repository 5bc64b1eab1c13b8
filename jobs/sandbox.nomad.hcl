# A sandbox as a Nomad job of its own. Run it with
#
#   nomad job run jobs/sandbox.nomad.hcl
#   nomad alloc exec -i -t -job sandbox bash
#   nomad alloc logs -f -job sandbox
#
# `nomad alloc status -stats` shows numbers where the client's configuration has telemetry { publish_allocation_metrics = true }:
# Nomad asks no driver for them otherwise.
#
# The template must be in the node's store: soulbox template import base
job "sandbox" {
  type = "service"

  group "sandbox" {
    task "main" {
      driver = "soulbox"
      user   = "user"

      config {
        template = "base"
        hostname = "sandbox"
        command  = "/bin/bash"
        args = ["-c", <<-EOS
          echo "sandbox of allocation $NOMAD_ALLOC_ID is up"
          trap 'echo "reloaded"' HUP
          trap 'echo "stopping"; exit 0' TERM
          n=0
          while true; do
            n=$((n + 1))
            echo "tick $n"
            sleep 1 & wait $!
          done
        EOS
        ]

        # Beyond Nomad's resources: a hard limit of processor time, of processes and of open files.
        limits {
          cpu_millis = 1000
          pids       = 256
          nofile     = 4096
        }

        # Which sandboxes give way when the machine is short of memory or processor: guaranteed, burstable or best_effort.
        qos = "burstable"
      }

      resources {
        cpu    = 200
        memory = 256
      }

      kill_timeout = "5s"
    }
  }
}
