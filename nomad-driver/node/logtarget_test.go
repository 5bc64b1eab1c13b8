package node

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Nomad's log collector waits in open(2) of its FIFO for a writer. One that comes only to look and goes gives it the end of
// file, after which it never reads again.
func TestCheckLogTargets_doesNotWakeTheReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	must.NoError(t, unix.Mkfifo(path, 0o600))
	opened := make(chan error, 1)
	go func() { // ends with the writer below
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			var b [1]byte
			if n, _ := unix.Read(fd, b[:]); n != 1 {
				err = unix.EPIPE
			}
			_ = unix.Close(fd)
		}
		opened <- err
	}()
	for range 100 {
		must.NoError(t, checkLogTargets(&nodeapi.LogTargets{Stdout: path, Stderr: path}))
	}
	f, err := openTarget(path)
	must.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("x")
	must.NoError(t, err)
	must.NoError(t, <-opened)
}
