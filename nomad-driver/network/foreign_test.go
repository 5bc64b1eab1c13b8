package network

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
)

func TestForeign_isListenedInAndNoThreadStays(t *testing.T) {
	w := newWorld(t)
	before := namespaces(t)
	path := networktest.Mount(t, w.host)
	ns, err := OpenForeign(path)
	must.NoError(t, err)
	wired, err := ns.Wired()
	must.NoError(t, err)
	must.True(t, wired)
	for range 50 {
		var l net.Listener
		must.NoError(t, ns.Do(func() (err error) { l, err = net.Listen("tcp", ":0"); return err }))
		must.NoError(t, l.Close())
	}
	again, err := OpenForeign(path)
	must.NoError(t, err)
	must.EqOp(t, ns.ID(), again.ID())
	must.NoError(t, again.Close())
	must.NoError(t, ns.Close())
	for in := range namespaces(t) {
		must.True(t, before[in], must.Sprintf("a thread is in %s, where none was", in)) // one that was on its way out may be gone
	}

	lonely, err := OpenForeign(networktest.Mount(t, networktest.NewNamespace(t)))
	must.NoError(t, err)
	defer lonely.Close()
	wired, err = lonely.Wired()
	must.NoError(t, err)
	must.False(t, wired)
	must.NotEqOp(t, ns.ID(), lonely.ID())
}

func TestForeign_refusesWhatIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{file, filepath.Join(t.TempDir(), "gone"), "/proc/self/ns/mnt", "/dev/null", "/"} {
		_, err := OpenForeign(path)
		must.ErrorIs(t, err, ErrNoNamespace, must.Sprint(path))
		must.ErrorContains(t, err, path)
	}
}

// namespaces are the network namespaces that threads of this process are in.
func namespaces(t *testing.T) map[string]bool {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	must.NoError(t, err)
	in := map[string]bool{}
	for _, task := range tasks {
		if link, err := os.Readlink(task); err == nil { // else the thread has ended
			in[link] = true
		}
	}
	return in
}
