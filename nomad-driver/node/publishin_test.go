package node

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// groupAddr is the address of a group's namespace, at the end of a link from the host's, which is groupGateway.
const (
	groupAddr    = "172.26.64.7"
	groupGateway = "172.26.64.1"
)

// group makes a network namespace that is wired to the host's as Nomad's groups are.
func group(t *testing.T, host *os.File) *os.File {
	t.Helper()
	ns := networktest.NewNamespace(t)
	must.NoError(t, networktest.In(host, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "group0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}); err != nil {
			return err
		}
		return networktest.Plug("group0", groupGateway+"/20")
	}))
	must.NoError(t, networktest.In(ns, func() error {
		if err := networktest.Plug("eth0", groupAddr+"/20"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(groupGateway)})
	}))
	return ns
}

// unwire takes the link of the group before away, so that another one may have its name and addresses.
func unwire(t *testing.T, host *os.File) {
	t.Helper()
	must.NoError(t, networktest.In(host, func() error {
		l, err := netlink.LinkByName("group0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
}

// inGroup are ports that are listened for in a namespace.
func inGroup(path string, ports ...int) func(*nodeapi.CreateRequest) {
	return func(r *nodeapi.CreateRequest) {
		r.PublishIn = path
		for _, p := range ports {
			for _, proto := range []string{"tcp", "udp"} {
				r.Publish = append(r.Publish, nodeapi.PublishedPort{Proto: proto, Port: p, NodePort: p})
			}
		}
	}
}

// answered reports whether a line that is sent from a namespace comes back from the server inside.
func answered(ns *os.File, network, address string) bool {
	var got string
	err := networktest.In(ns, func() (err error) { got, err = askLine(network, address, "hello"); return err })
	return err == nil && got == "HELLO\n"
}

// holds lists which threads of the daemon are in a network namespace, and which of its files keep it open.
func (d *daemon) holds(ns *os.File) (held []string) {
	d.t.Helper()
	want, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	must.NoError(d.t, err)
	for _, pattern := range []string{"task/*/ns/net", "fd/*"} {
		found, err := filepath.Glob(fmt.Sprintf("/proc/%d/%s", d.cmd.Process.Pid, pattern))
		must.NoError(d.t, err)
		for _, path := range found {
			if link, err := os.Readlink(path); err == nil && link == want { // else the thread has ended
				held = append(held, path)
			}
		}
	}
	return held
}

func TestRealPublishIn_aGroupReachesTheSandboxAndNotTheOtherWayRound(t *testing.T) {
	w := networktest.New(t)
	ns := group(t, w.Host)
	for _, a := range []string{groupAddr + ":9000", "127.0.0.1:9000"} {
		networktest.Serve(t, ns, a)
	}
	networktest.Serve(t, w.Outside, networktest.OutsideAddr+":80")
	path := networktest.Mount(t, ns)
	d := startDaemonIn(t, w.Host, "-network", "on")
	d.importPython()
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template = "python" }, inGroup(path, 8080))
	_, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"python3", "-c", echoServer, "8080"}}})
	must.NoError(t, err)
	for _, proto := range []string{"tcp", "udp"} {
		waitUntil(t, proto+" from another task of the group", func() bool { return answered(ns, proto, "127.0.0.1:8080") })
		must.True(t, answered(w.Host, proto, groupAddr+":8080"), must.Sprint("where Nomad's port map leads"))
		must.False(t, answered(w.Host, proto, "127.0.0.1:8080"), must.Sprint("the machine's own port is not taken"))
	}
	// What it sends passes its own firewall: the group is as far away as any private range, and the internet is where it was.
	for _, host := range []string{groupAddr, groupGateway, "127.0.0.1"} {
		_, ok := connect(d, sb, host, 9000)
		must.False(t, ok, must.Sprint(host))
	}
	from, ok := connect(d, sb, networktest.OutsideAddr, 80)
	must.True(t, ok)
	must.EqOp(t, networktest.HostAddr, from)
	st, err := d.client.Network(t.Context(), sb.ID)
	must.NoError(t, err)
	must.SliceNotEmpty(t, st.Denied)
	must.SliceEmpty(t, d.holds(ns))
}

func TestRealPublishIn_comesBackAfterAKillAndStaysOverAPause(t *testing.T) {
	host := networktest.New(t).Host
	ns := group(t, host)
	path := networktest.Mount(t, ns)
	d := startDaemon(t, "-network", "off")
	d.importPython()
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template = "python" }, inGroup(path, 8080))
	_, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"python3", "-c", echoServer, "8080"}}})
	must.NoError(t, err)
	answers := func(in *os.File) {
		t.Helper()
		for _, proto := range []string{"tcp", "udp"} {
			waitUntil(t, proto, func() bool { return answered(in, proto, "127.0.0.1:8080") })
		}
	}
	answers(ns)
	d.kill()
	d.start()
	answers(ns)

	_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthFrozen))
	must.NoError(t, err)
	must.False(t, answered(ns, "tcp", "127.0.0.1:8080"))
	_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	answers(ns)

	// Nomad has wired the group anew, in another namespace at the same path.
	must.NoError(t, unix.Unmount(path, unix.MNT_DETACH))
	unwire(t, host)
	next := group(t, host)
	networktest.MountAt(t, next, path)
	list, err := d.client.RenewPublished(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Len(t, 2, list)
	must.EqOp(t, "", list[0].Error+list[1].Error)
	answers(next)
	must.False(t, answered(ns, "tcp", "127.0.0.1:8080"), must.Sprint("nobody listens where the group was"))
	again, err := d.client.RenewPublished(t.Context(), sb.ID)
	must.NoError(t, err)
	must.Eq(t, list, again)

	// The namespace is gone: it is said, and the sandbox goes on.
	must.NoError(t, unix.Unmount(path, unix.MNT_DETACH))
	d.kill()
	d.start()
	for _, look := range []func() ([]nodeapi.PublishedPort, error){
		func() ([]nodeapi.PublishedPort, error) { return d.client.Published(t.Context(), sb.ID) },
		func() ([]nodeapi.PublishedPort, error) { return d.client.RenewPublished(t.Context(), sb.ID) },
	} {
		list, err := look()
		must.NoError(t, err)
		must.Len(t, 2, list)
		for _, p := range list {
			must.StrContains(t, p.Error, path+": not a network namespace")
		}
	}
	_, code := d.exec(sb, "true")
	must.EqOp(t, 0, code)

	// And comes back.
	networktest.MountAt(t, next, path)
	list, err = d.client.RenewPublished(t.Context(), sb.ID)
	must.NoError(t, err)
	must.EqOp(t, "", list[0].Error+list[1].Error)
	answers(next)
	must.NoError(t, d.client.Delete(t.Context(), sb.ID))
	must.NoError(t, networktest.In(next, func() error { // nobody has it any more
		l, err := net.Listen("tcp", ":8080")
		must.NoError(t, err)
		must.NoError(t, l.Close())
		u, err := net.ListenPacket("udp", ":8080")
		must.NoError(t, err)
		return u.Close()
	}))
	must.SliceEmpty(t, d.holds(next))
}

func TestRealPublishIn_saysWhatIsWrong(t *testing.T) {
	host := networktest.New(t).Host
	ns := group(t, host)
	path := networktest.Mount(t, ns)
	lonely := networktest.Mount(t, networktest.NewNamespace(t))
	networktest.Serve(t, ns, "127.0.0.1:8081")
	d := startDaemon(t, "-network", "off")
	for _, c := range []struct {
		path   string
		port   int
		status int
		text   string
	}{
		{"relative", 8080, http.StatusBadRequest, `publish_in: "relative" is not an absolute path`},
		{"/no/such/namespace", 8080, http.StatusBadRequest, "publish_in: /no/such/namespace: not a network namespace: it does not exist"},
		{"/proc/self/ns/mnt", 8080, http.StatusBadRequest, "publish_in: /proc/self/ns/mnt: not a network namespace"},
		{lonely, 8080, http.StatusBadRequest, "network mode none, which is not supported"},
		{path, 8081, http.StatusConflict, "publish tcp port 8081 in network namespace " + path},
	} {
		req := createRequest()
		inGroup(c.path, c.port)(&req)
		_, err := d.client.Create(t.Context(), req)
		must.EqOp(t, c.status, api.StatusOf(err), must.Sprint(err))
		must.ErrorContains(t, err, c.text)
	}
	must.SliceEmpty(t, d.holds(ns))
}
