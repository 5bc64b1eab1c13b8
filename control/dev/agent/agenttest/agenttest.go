// Package agenttest runs agents of the stack for the length of a test.
//
// It owns their folders, and skips a test where the stack is not on this machine; it fails where SOULBOX_STACK says that it
// is. It is used by tests only.
package agenttest

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/tools/stack"
)

// Binary returns the path of an executable of the stack.
func Binary(t testing.TB, name string) string {
	t.Helper()
	path, err := stack.Find(name)
	if errors.Is(err, stack.ErrMissing) && os.Getenv(stack.Env) == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Ports returns n free ports of loopback, as agent.FreePorts.
func Ports(t testing.TB, n int) []int {
	t.Helper()
	ports, err := agent.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

// Address returns a free address of loopback, host:port.
func Address(t testing.TB) string {
	t.Helper()
	return agent.Address(Ports(t, 1)[0])
}

// Nomad runs a Nomad agent. An empty Binary and Dir in cfg are filled in.
func Nomad(t testing.TB, cfg agent.NomadConfig) *agent.Nomad {
	t.Helper()
	cfg.Binary = Binary(t, "nomad")
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	n, err := agent.StartNomad(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return started(t, n, n.Stop, func() []string { return []string{n.Server.Log(), n.Client.Log()} })
}

// Consul runs a Consul agent.
func Consul(t testing.TB, cfg agent.ConsulConfig) *agent.Consul {
	t.Helper()
	cfg.Binary = Binary(t, "consul")
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	c, err := agent.StartConsul(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return started(t, c, c.Stop, func() []string { return []string{c.Log()} })
}

// Vault runs a Vault server.
func Vault(t testing.TB, cfg agent.VaultConfig) *agent.Vault {
	t.Helper()
	cfg.Binary = Binary(t, "vault")
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	v, err := agent.StartVault(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return started(t, v, v.Stop, func() []string { return []string{v.Log()} })
}

func started[T any](t testing.TB, a T, stop func(context.Context) error, logs func() []string) T {
	t.Cleanup(func() {
		if err := stop(context.Background()); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			return
		}
		for _, log := range logs() {
			t.Logf("end of %s:\n%s", log, end(log))
		}
	})
	return a
}

func end(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	return data[max(0, len(data)-8<<10):]
}

// Eventually calls check until it returns nil, for at most timeout.
func Eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", timeout, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
