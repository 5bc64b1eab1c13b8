package dev

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestStart_failsWithWhatAnAgentSays(t *testing.T) {
	program := func(name, script string) string {
		path := filepath.Join(t.TempDir(), name)
		must.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700))
		return path
	}
	waits := program("waits", "exec sleep 60")
	full := program("full", `echo "no space left in the test"; exit 1`)
	for name, cfg := range map[string]Config{
		"consul ends": {Consul: full, Vault: waits, Nomad: waits},
		"vault ends":  {Consul: waits, Vault: full, Nomad: waits},
		"nomad ends":  {Consul: waits, Vault: waits, Nomad: full},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg.Dir, cfg.Driver, cfg.Init = t.TempDir(), waits, waits
			for range 2 { // what the first held, its folder above all, is free again
				c, err := Start(t.Context(), cfg)
				must.ErrorContains(t, err, "no space left in the test")
				must.Nil(t, c)
			}
		})
	}
}
