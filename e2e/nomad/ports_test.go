package nomad

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// webJob serves a page at port 8080 of its sandbox, to which a port leads that Nomad chooses.
const webJob = `
job "web" {
  type = "service"
  group "web" {
    network {
      port "http" { to = 8080 }
      port "other" {}
    }
    service {
      name     = "web"
      port     = "http"
      provider = "nomad"
      check {
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "2s"
      }
    }
    task "web" {
      driver = "soulbox"
      config {
        template = "base"
        command  = "sh"
        args     = ["-c", "cd /tmp && echo from $NOMAD_ALLOC_ID at $NOMAD_PORT_http > index.html && exec python3 -m http.server 8080"]
        ports    = ["http"]
      }
      resources { 
        cpu    = 100
        memory = 128
      }
    }
  }
}
`

// A group's ports lead into the sandbox of the task that names them, at the address and the number that Nomad says, and Nomad's own check
// of the service passes.
func TestJob_portsOfTheGroupLeadIntoTheSandbox(t *testing.T) {
	a := startAgent(t)
	file := filepath.Join(t.TempDir(), "web.nomad.hcl")
	must.NoError(t, os.WriteFile(file, []byte(webJob), 0o600))
	a.cli(t, "job", "run", "-detach", file)
	alloc := a.alloc(t, "web", "running")
	info, _, err := a.api.Allocations().Info(alloc.ID, nil)
	must.NoError(t, err)
	must.Len(t, 2, info.AllocatedResources.Shared.Ports)
	for _, p := range info.AllocatedResources.Shared.Ports {
		url := fmt.Sprintf("http://%s:%d/", p.HostIP, p.Value)
		client := http.Client{Timeout: 2 * time.Second}
		if p.Label == "other" { // which no task named
			_, err := client.Get(url)
			must.Error(t, err)
			continue
		}
		poll(t, "the page", func() error {
			r, err := client.Get(url)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			if want := "from " + alloc.ID + " at 8080"; err == nil && strings.TrimSpace(string(b)) != want {
				err = fmt.Errorf("%q is not %q", b, want)
			}
			return err
		})
		poll(t, "Nomad's check of the service", func() error {
			checks, err := a.api.Allocations().Checks(alloc.ID, nil)
			if err != nil {
				return err
			}
			for _, c := range checks {
				if c.Status == "success" {
					return nil
				}
			}
			return fmt.Errorf("checks: %+v", checks)
		})
	}
	a.cli(t, "job", "stop", "-purge", "-detach", "web")
	a.cli(t, "system", "gc")
	poll(t, "the node to forget the sandbox", func() error {
		if left := a.sandboxes(t); len(left) != 0 {
			return fmt.Errorf("sandboxes: %+v", left)
		}
		return nil
	})
	a.host().NothingLeft(t)
}

// What a sandbox reaches by default is seen by the attribute that jobs may constrain on.
func TestNode_tellsNomadWhetherSandboxesHaveANetwork(t *testing.T) {
	a := startAgent(t)
	n, err := nodeapi.NewUnix(a.socket).Node(t.Context())
	must.NoError(t, err)
	want := "0"
	for _, p := range n.Probes {
		if p.Name == "sandbox_network" && p.OK {
			want = "1"
		}
	}
	nodes, _, err := a.api.Nodes().List(nil)
	must.NoError(t, err)
	must.Len(t, 1, nodes)
	node, _, err := a.api.Nodes().Info(nodes[0].ID, nil)
	must.NoError(t, err)
	must.EqOp(t, want, map[string]string{"1": "1", "true": "1", "0": "0", "false": "0"}[node.Attributes["driver.soulbox.probe.sandbox_network"]],
		must.Sprintf("attribute %q", node.Attributes["driver.soulbox.probe.sandbox_network"]))
}
