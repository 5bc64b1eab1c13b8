# A web server in a sandbox, in a group with a network of its own (mode bridge: the client needs CNI plugins and iptables). Run it with
#
#   nomad job run jobs/bridge.nomad.hcl
#   nomad service info web          # at which address and port of the machine it is
#   nomad alloc checks ALLOCATION   # what its check says
#
# The sandbox itself is not in the group's network: what it sends passes its own firewall, and it does not see the group's 127.0.0.1.
# The template must be in the node's store: soulbox template import base
job "web" {
  type = "service"

  group "web" {
    network {
      mode = "bridge"
      port "http" {
        to = 8080
      }
    }

    service {
      name     = "web"
      port     = "http"
      provider = "nomad"

      check {
        type     = "http"
        path     = "/"
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "web" {
      driver = "soulbox"
      user   = "user"

      config {
        template = "base"
        command  = "sh"
        args     = ["-c", "cd /tmp && echo from $NOMAD_ALLOC_ID > index.html && exec python3 -m http.server $NOMAD_PORT_http"]

        # In the group's namespace the node listens at 8080, and carries each connection to the same port inside.
        ports = ["http"]
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
