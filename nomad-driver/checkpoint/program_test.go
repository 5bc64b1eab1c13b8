package checkpoint_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// What leads to CRIU is started once.
func TestOpen_startsNoWrapperAgain(t *testing.T) {
	criu := sandboxtest.CRIU(t)
	dir := t.TempDir()
	wrapper, calls := filepath.Join(dir, "criu"), filepath.Join(dir, "calls")
	must.NoError(t, os.WriteFile(wrapper, []byte("#!/bin/sh\necho >> "+calls+"\nexec "+criu+" \"$@\"\n"), 0o700))
	e, err := checkpoint.Open(t.Context(), wrapper)
	must.NoError(t, err)
	must.NoError(t, e.Slow()) // it was started again, and asked about the kernel
	b, err := os.ReadFile(calls)
	must.NoError(t, err)
	must.Eq(t, 1, bytes.Count(b, []byte("\n")), must.Sprint(strings.TrimSpace(string(b))))
}
