package disk

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// effective reports whether the calling thread has CAP_SYS_RESOURCE.
func effective(t *testing.T) bool {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must.NoError(t, unix.Capget(&hdr, &data[0]))
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestWithinLimits_givesTheCapabilityUpForItsFunctionOnly(t *testing.T) {
	had := effective(t)
	boom := errors.New("boom")
	err := WithinLimits(func() error {
		must.False(t, effective(t))
		return boom
	})
	must.ErrorIs(t, err, boom)
	must.Eq(t, had, effective(t))
}

func TestWriter_writesEverything(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	must.NoError(t, err)
	defer f.Close()
	n, err := Writer(f).Write([]byte("hello"))
	must.NoError(t, err)
	must.Eq(t, 5, n)
	b, err := os.ReadFile(f.Name())
	must.NoError(t, err)
	must.Eq(t, "hello", string(b))
}

func BenchmarkWriter(b *testing.B) {
	f, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	must.NoError(b, err)
	defer f.Close()
	w := Writer(f)
	p := make([]byte, 64<<10)
	for b.Loop() {
		if _, err := w.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}
