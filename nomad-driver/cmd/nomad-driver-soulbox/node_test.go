package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk/s3"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/node"
)

func TestNodeConfig_flagsWinOverTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.hcl")
	must.NoError(t, os.WriteFile(path, []byte(`
state_dir      = "/file/state"
run_dir        = "/file/run"
max_sandboxes  = 7
keep_stopped   = "2h"
defaults {
  memory_bytes = 134217728
}
tls {
  ca_file      = "/ca"
  cert_file    = "/cert"
  key_file     = "/key"
  client_names = ["control.soulbox"]
}
snapshot_key = "/file/key"
snapshot_s3 {
  endpoint        = "https://s3.example.org"
  bucket          = "snapshots"
  access_key      = "a"
  secret_key_file = "/secret"
}
network {
  mode = "on"
  uplink {
    link                = "eth1"
    in_bytes_per_second = 125000000
  }
}
consul {
  address   = "127.0.0.1:8500"
  advertise = "10.0.0.1:7302"
}
`), 0o600))
	cfg, registration, err := nodeConfig([]string{"-config", path, "-state-dir", "/flag/state", "-snapshot-key", "/flag/key", "-criu", "/flag/criu"})
	must.NoError(t, err)
	must.Eq(t, "/flag/state", cfg.StateDir)
	must.Eq(t, "/file/run", cfg.RunDir)
	must.Eq(t, "/flag/key", cfg.SnapshotKey)
	must.Eq(t, "/flag/criu", cfg.CRIUPath)
	must.Eq(t, s3.Config{Endpoint: "https://s3.example.org", Bucket: "snapshots", AccessKey: "a", SecretKeyFile: "/secret"}, *cfg.SnapshotS3)
	must.Eq(t, 7, cfg.MaxSandboxes)
	must.Eq(t, network.Uplink{Link: "eth1", In: 125_000_000}, cfg.Network.Uplink)
	must.Eq(t, "10.0.0.1:7302", registration.Advertise)
	must.Eq(t, 2*time.Hour, cfg.KeepStopped)
	must.Eq(t, 128<<20, cfg.Defaults.MemoryBytes)
	must.Eq(t, node.TLS{CAFile: "/ca", CertFile: "/cert", KeyFile: "/key", ClientNames: []string{"control.soulbox"}}, cfg.TLS)
}

func TestNodeConfig_snapshotKeyOfTheControlService(t *testing.T) {
	cfg, _, err := nodeConfig([]string{"-snapshot-key-from", "control"})
	must.NoError(t, err)
	must.True(t, cfg.SnapshotKeyGiven)
	_, _, err = nodeConfig([]string{"-snapshot-key-from", "control", "-snapshot-key", "/k"})
	must.ErrorContains(t, err, "snapshot_key_from")
	_, _, err = nodeConfig([]string{"-snapshot-key-from", "vault"})
	must.ErrorContains(t, err, "snapshot_key_from")
}

func TestNodeConfig_badInput(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		must.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"unknown attribute", []string{"-config", file("a.hcl", `state_folder = "/x"`)}, "state_folder"},
		{"bad level", []string{"-log-level", "loud"}, "log_level"},
		{"bad duration", []string{"-config", file("b.hcl", `keep_stopped = "soon"`)}, "keep_stopped"},
		{"two snapshot stores", []string{"-snapshot-dir", "/x", "-config", file("c.hcl", "snapshot_s3 {\n endpoint = \"http://h\"\n bucket = \"b\"\n}")}, "snapshot_s3"},
		{"an uplink without rates", []string{"-config", file("d.hcl", "network {\n uplink {\n }\n}")}, "in_bytes_per_second"},
		{"an uplink that is too slow", []string{"-config", file("e.hcl", "network {\n uplink {\n out_bytes_per_second = 7\n }\n}")}, "out_bytes_per_second is 7"},
		{"negative id", []string{"-id-range-base", "-1"}, "id_range_base"},
		{"argument", []string{"extra"}, "extra"},
		{"missing file", []string{"-config", filepath.Join(dir, "none.hcl")}, "none.hcl"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := nodeConfig(tc.args)
			must.ErrorContains(t, err, tc.want)
		})
	}
}
