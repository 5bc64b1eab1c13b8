package unpack

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// A umask that would show wherever a mode is left to it.
	unix.Umask(0o077)
	if os.Geteuid() != 0 {
		println("these tests give files to other users and need root")
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func contextWithCancel(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
