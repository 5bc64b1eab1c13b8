package disk

import (
	"errors"
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
