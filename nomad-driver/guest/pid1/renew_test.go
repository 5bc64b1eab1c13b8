package pid1

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// TestRenew_isFoundWhateverWasCutOff has a node go in the midst of a renew, before or after it has bound the next socket: PID 1 is found by whatever name
// the node has given, and by the last one alone once a renew came to its end.
func TestRenew_isFoundWhateverWasCutOff(t *testing.T) {
	dir := t.TempDir()
	listen := func(fd int, name string) error {
		return errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, name)}), unix.Listen(fd, 8))
	}
	talks := func(name string) error {
		_, err := guest.NewClient(filepath.Join(dir, name)).List(t.Context())
		return err
	}
	s := newServer(fakeBackend{t}, nil)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(t, err)
	must.NoError(t, listen(fd, "first"))
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.serve(pollable(fd, "first"))
	}()
	gone := errors.New("the node is gone")
	first := guest.NewClient(filepath.Join(dir, "first"))
	must.ErrorIs(t, first.Renew(t.Context(), guest.Renew{SandboxID: "another"}, func(*os.File) error { return gone }), gone)
	must.NoError(t, talks("first"))
	must.ErrorIs(t, first.Renew(t.Context(), guest.Renew{SandboxID: "another"}, func(f *os.File) error { return errors.Join(listen(int(f.Fd()), "second"), gone) }), gone)
	must.NoError(t, talks("first"))
	must.NoError(t, talks("second"))
	must.NoError(t, guest.NewClient(filepath.Join(dir, "second")).Renew(t.Context(), guest.Renew{SandboxID: "another"}, func(f *os.File) error { return listen(int(f.Fd()), "third") }))
	must.NoError(t, talks("third"))
	<-served
	for _, old := range []string{"first", "second"} {
		for deadline := time.Now().Add(10 * time.Second); !errors.Is(talks(old), unix.ECONNREFUSED); time.Sleep(time.Millisecond) {
			must.True(t, time.Now().Before(deadline), must.Sprint("the one before is closed: ", old))
		}
	}
	s.mu.Lock()
	last := s.lis
	s.mu.Unlock()
	must.Len(t, 1, last)
	must.NoError(t, last[0].Close())
}
