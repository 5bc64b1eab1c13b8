package nomad

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/tools/stack"
)

// namespaces is where Nomad keeps those of its groups.
const namespaces = "/var/run/netns"

// conflist is a network of CNI's that needs no iptables: its ports are mapped by nftables.
const conflist = `{
  "cniVersion": "1.0.0", "name": "boxes",
  "plugins": [
    {"type": "loopback"},
    {"type": "bridge", "bridge": "boxes0", "isGateway": true, "ipam": {
      "type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "172.27.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]
    }},
    {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}
  ]
}`

// groupJob is a group of a network mode: a task of another driver reads a page again and again that the sandbox serves.
const groupJob = `
job %[1]q {
  type = "service"
  group "web" {
    network {
      mode = %[2]q
      port "http" { to = 8080 }
      port "other" { to = 8081 }
    }
    service {
      name     = "outside-%[1]s"
      port     = "http"
      provider = "nomad"
      check {
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "2s"
      }
    }
    service {
      name         = "inside-%[1]s"
      port         = "http"
      provider     = "nomad"
      address_mode = "alloc"
      check {
        type         = "http"
        path         = "/"
        address_mode = "alloc"
        port         = 8080
        interval     = "2s"
        timeout      = "2s"
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
    task "neighbour" {
      driver = "raw_exec"
      config {
        command = "/bin/bash"
        args    = ["-c", "while sleep 1; do exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && tail -n1 <&3; done 2>/dev/null"]
      }
      resources {
        cpu    = 50
        memory = 32
      }
    }
  }
}
`

// bridged is a machine of the test's own on which Nomad can wire groups, or the test is skipped with the reason.
func bridged(t *testing.T) (machine, *networktest.World) {
	t.Helper()
	w := networktest.New(t)
	plugins, err := stack.Find("cni")
	must.NoError(t, err)
	for _, probe := range [][]string{{"iptables", "-w", "-t", "nat", "-S"}, {"iptables", "-w", "-S"}, {"nft", "list", "ruleset"}} {
		var out []byte
		err := networktest.In(w.Host, func() (err error) { out, err = exec.Command(probe[0], probe[1:]...).CombinedOutput(); return err })
		if errors.Is(err, exec.ErrNotFound) {
			t.Fatalf("%s is not installed: run \"tools/deps test\"", probe[0])
		}
		if err != nil {
			t.Skipf("this kernel cannot do what Nomad's network modes ask for: %s: %v: %s", strings.Join(probe, " "), err, out)
		}
	}
	if _, err := os.Stat("/sys/module/bridge"); err != nil {
		if out, err := exec.Command("modprobe", "bridge").CombinedOutput(); err != nil {
			t.Skipf("this kernel has no bridges: %v: %s", err, out)
		}
	}
	keepMachineClean(t)
	networks := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(networks, "boxes.conflist"), fmt.Appendf(nil, conflist, filepath.Join(networks, "addresses")), 0o600))
	return machine{
		netns: w.Host, drivers: ",raw_exec", plugins: `plugin "raw_exec" { config { enabled = true } }`,
		client: fmt.Sprintf("  cni_path = %q\n  cni_config_dir = %q\n", plugins, networks), nodeArgs: []string{"-network", "on"},
	}, w
}

// keepMachineClean takes away what Nomad and CNI keep on a machine beside their networks, if it is not there yet.
func keepMachineClean(t *testing.T) {
	t.Helper()
	var fresh []string
	for _, dir := range []string{"/var/run/cni/nomad", "/var/run/cni", "/var/lib/cni/results", "/var/lib/cni", namespaces} {
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			fresh = append(fresh, dir)
		}
	}
	mounted := isMount(t, namespaces)
	t.Cleanup(func() {
		if !mounted && isMount(t, namespaces) {
			must.NoError(t, unix.Unmount(namespaces, unix.MNT_DETACH))
		}
		for _, dir := range fresh {
			files, err := os.ReadDir(dir)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			must.NoError(t, err)
			for _, f := range files {
				if dir != "/var/run/cni/nomad" || f.Name() != "lock" && !strings.HasPrefix(f.Name(), "last_reserved_ip") {
					t.Errorf("left on the machine: %s", filepath.Join(dir, f.Name()))
				}
			}
			must.NoError(t, os.RemoveAll(dir))
		}
	})
}

func isMount(t *testing.T, path string) bool {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	must.NoError(t, err)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Fields(line)[4] == path {
			return true
		}
	}
	return false
}

// page reads what is served at an address, from a network namespace.
func page(ctx context.Context, ns *os.File, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	c, err := machine{netns: ns}.dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := req.Write(c); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(b)), err
}

// groupOf is an allocation of a group with a network of its own.
type groupOf struct {
	a     *agent
	w     *networktest.World
	alloc *nomadapi.Allocation
	ns    *os.File
}

// reached waits until the page is there from outside, at the port of the machine that Nomad gave, and in the group, at its loopback.
func (g *groupOf) reached(t *testing.T) {
	t.Helper()
	want := "from " + g.alloc.ID + " at 8080"
	for _, from := range []struct {
		ns      *os.File
		address string
	}{{g.ns, "127.0.0.1:8080"}, {g.w.Outside, g.port(t, "http")}} {
		poll(t, "the page at "+from.address, func() error {
			got, err := page(t.Context(), from.ns, from.address)
			if err == nil && got != want {
				err = fmt.Errorf("%q is not %q", got, want)
			}
			return err
		})
	}
}

// port is where a port of the group is on the machine.
func (g *groupOf) port(t *testing.T, label string) string {
	t.Helper()
	for _, p := range g.alloc.AllocatedResources.Shared.Ports {
		if p.Label == label {
			return fmt.Sprintf("%s:%d", p.HostIP, p.Value)
		}
	}
	t.Fatalf("allocation %s has no port %s", g.alloc.ID, label)
	return ""
}

// checksPass waits until Nomad's own checks, from the machine and of the allocation's address, have passed.
func (g *groupOf) checksPass(t *testing.T, want int) {
	t.Helper()
	poll(t, "Nomad's checks", func() error {
		checks, err := g.a.api.Allocations().Checks(g.alloc.ID, nil)
		if err != nil {
			return err
		}
		passed := 0
		for _, c := range checks {
			if c.Status == "success" {
				passed++
			}
		}
		if passed != want {
			return fmt.Errorf("checks: %+v", checks)
		}
		return nil
	})
}

// connects tries from inside the sandbox.
func (g *groupOf) connects(t *testing.T, host string, port int) bool {
	t.Helper()
	out, err := g.a.tryCLI(t, "alloc", "exec", "-t=false", "-task", "web", g.alloc.ID,
		"timeout", "5", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d && read -r line <&3 && echo reached", host, port))
	return err == nil && strings.Contains(out, "reached")
}

func TestJob_ofAGroupWithANetworkOfItsOwn(t *testing.T) {
	m, w := bridged(t)
	networktest.Serve(t, w.Outside, networktest.OutsideAddr+":80")
	a := startAgentOn(t, m)
	for name, mode := range map[string]string{"bridged": "bridge", "chained": "cni/boxes"} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), name+".nomad.hcl")
			must.NoError(t, os.WriteFile(file, fmt.Appendf(nil, groupJob, name, mode), 0o600))
			a.cli(t, "job", "run", "-detach", file)
			g := &groupOf{a: a, w: w, alloc: a.alloc(t, name, "running")}
			path := filepath.Join(namespaces, g.alloc.ID)
			var err error
			g.ns, err = os.Open(path)
			must.NoError(t, err)
			defer func() { _ = g.ns.Close() }() // it is also closed below
			g.reached(t)
			poll(t, "the neighbour to read the page", func() error {
				if out := a.cli(t, "alloc", "logs", "-task", "neighbour", g.alloc.ID); !strings.Contains(out, "from "+g.alloc.ID+" at 8080") {
					return fmt.Errorf("logs: %q", out)
				}
				return nil
			})
			g.checksPass(t, 2)
			_, err = page(t.Context(), w.Outside, g.port(t, "other")) // which no task named
			must.Error(t, err)

			// What it sends passes its firewall, not the group's network.
			inGroup := g.address(t)
			networktest.Serve(t, g.ns, inGroup+":9000")
			networktest.Serve(t, g.ns, "127.0.0.1:9000")
			must.True(t, g.connects(t, networktest.OutsideAddr, 80))
			for _, host := range []string{inGroup, "127.0.0.1"} {
				must.False(t, g.connects(t, host, 9000), must.Sprint(host))
			}
			if mode == "bridge" {
				g.survives(t, path)
			}
			must.NoError(t, g.ns.Close())
			a.cli(t, "job", "stop", "-purge", "-detach", name)
			a.cli(t, "system", "gc")
			poll(t, "the node to forget the sandbox", func() error { return a.none(t) })
			poll(t, "Nomad to take the namespace away", func() error {
				if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("%s: %v", path, err)
				}
				return nil
			})
		})
	}
	t.Run("the example", func(t *testing.T) {
		a.cli(t, "job", "run", "-detach", "../../jobs/bridge.nomad.hcl")
		g := &groupOf{a: a, w: w, alloc: a.alloc(t, "web", "running")}
		poll(t, "the page", func() error {
			got, err := page(t.Context(), w.Outside, g.port(t, "http"))
			if want := "from " + g.alloc.ID; err == nil && got != want {
				err = fmt.Errorf("%q is not %q", got, want)
			}
			return err
		})
		g.checksPass(t, 1)
		a.cli(t, "job", "stop", "-purge", "-detach", "web")
		a.cli(t, "system", "gc")
		poll(t, "the node to forget the sandbox", func() error { return a.none(t) })
	})
	t.Run("mode none makes no sandbox", func(t *testing.T) { // Nomad 1.11 itself fails to set it up; the node refuses it where another one does not
		job := batchJob("none", command("true"), "")
		job.TaskGroups[0].Networks = []*nomadapi.NetworkResource{{Mode: "none"}}
		_, _, err := a.api.Jobs().Register(job, nil)
		must.NoError(t, err)
		a.alloc(t, "none", "failed")
		must.SliceEmpty(t, a.sandboxes(t))
		a.cli(t, "job", "stop", "-purge", "-detach", "none")
		a.cli(t, "system", "gc")
	})
	a.host().NothingLeft(t)
}

// address is the group's, of its link to the machine.
func (g *groupOf) address(t *testing.T) (address string) {
	t.Helper()
	must.NoError(t, networktest.In(g.ns, func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		list, err := eth.Addrs()
		if err != nil {
			return err
		}
		for _, a := range list {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
				address = n.IP.String()
			}
		}
		return nil
	}))
	must.NotEqOp(t, "", address)
	return address
}

// recovered waits until the plugin knows the task.
func (g *groupOf) recovered(t *testing.T) {
	t.Helper()
	poll(t, "exec to work again", func() error {
		out, err := g.a.tryCLI(t, "alloc", "exec", "-t=false", "-task", "web", g.alloc.ID, "echo", "here")
		if err != nil || out != "here\n" {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
}

// survives kills the plugin and the daemon, restarts the agent, and takes the group's namespace away for a while.
func (g *groupOf) survives(t *testing.T, path string) {
	a := g.a
	client := nodeapi.NewUnix(a.socket)
	killNode := func() {
		node, err := client.Node(t.Context())
		must.NoError(t, err)
		killPID(t, node.PID)
		poll(t, "another daemon", func() error {
			n, err := client.Node(t.Context())
			if err == nil && n.PID == node.PID {
				err = errors.New("it is the one that was killed")
			}
			return err
		})
	}
	before := a.sandboxes(t)
	must.SliceLen(t, 1, before)
	killPID(t, a.pluginPID(t))
	g.reached(t)
	g.recovered(t) // a daemon that is killed before would leave the task's log pipes with nobody
	killNode()
	g.reached(t)
	must.NoError(t, unix.Unmount(path, unix.MNT_DETACH))
	killNode()
	poll(t, "the task's events to tell of the ports", func() error {
		al, _, err := a.api.Allocations().Info(g.alloc.ID, nil)
		if err != nil {
			return err
		}
		if said := events(al.TaskStates["web"]); !strings.Contains(said, "Ports do not lead into the sandbox any more: tcp 8080: "+path) {
			return errors.New(said)
		}
		return nil
	})
	networktest.MountAt(t, g.ns, path)
	killPID(t, a.pluginPID(t)) // the next one asks for the ports again
	g.reached(t)
	g.recovered(t)
	g.checksPass(t, 2)

	// Nomad notes the address of a group once a minute, and when it ends: an agent that is killed before would give the allocation up.
	must.NoError(t, a.cmd.Process.Signal(os.Interrupt))
	<-a.done
	g.reached(t) // by the node alone
	a.start(t)
	a.waitDriver(t)
	g.reached(t)
	g.recovered(t)
	after := a.sandboxes(t)
	must.SliceLen(t, 1, after)
	must.Eq(t, before[0].ID, after[0].ID)
	must.Eq(t, before[0].PID, after[0].PID, must.Sprint("the same PID 1 is there"))
}
