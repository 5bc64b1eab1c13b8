package place

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

func TestCause_hasNoPathOfTheMachine(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "guest.sock")
	_, err := net.Dial("unix", socket)
	must.Error(t, err)
	got := Cause(fmt.Errorf("guest start: %w", err))
	must.StrNotContains(t, got.Error(), socket)
	must.ErrorIs(t, got, unix.ENOENT)
	other := errors.New("other")
	must.Eq(t, other, Cause(other))
}
