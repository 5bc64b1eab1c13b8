package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func (c NomadConfig) renderServer() string {
	var b strings.Builder
	c.renderCommon(&b, "server", c.HTTP, c.RPC)
	// Terminal evaluations and allocations are kept for an hour and longer by default. A service that makes and ends
	// sandboxes all day has no use for them.
	fmt.Fprint(&b, `server {
  enabled                 = true
  bootstrap_expect        = 1
  eval_gc_threshold       = "5m"
  batch_eval_gc_threshold = "5m"
  job_gc_threshold        = "5m"
  job_gc_interval         = "1m"
}
`)
	return b.String()
}

func (c NomadConfig) renderClient(plugins string) (string, error) {
	var b strings.Builder
	c.renderCommon(&b, "client", c.ClientHTTP, c.ClientRPC)
	fmt.Fprintf(&b, "plugin_dir = %s\n", quote(plugins))
	// Without the list a client waits for the metadata services of clouds, and does not start where AWS_CA_BUNDLE is set.
	// Nomad removes what has ended at once where the disk is four fifths full, whoever has filled it: its logs and its folder are then gone before anybody has looked.
	fmt.Fprintf(&b, `client {
  enabled           = true
  servers           = [%s]
  network_interface = "lo"
  gc_max_allocs     = 200
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99
  options {
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
`, quote(Address(c.RPC)))
	if c.MemoryMB > 0 {
		fmt.Fprintf(&b, "  memory_total_mb = %d\n", c.MemoryMB)
	}
	// Without it "nomad alloc status -stats" shows nothing, whatever the driver measures.
	b.WriteString("}\ntelemetry {\n  publish_allocation_metrics = true\n}\n")
	for _, p := range c.Plugins {
		fmt.Fprintf(&b, "plugin %s {\n  config {\n", quote(p.Name))
		if err := attributes(&b, p.Config, "    "); err != nil {
			return "", fmt.Errorf("plugin %s: %w", p.Name, err)
		}
		b.WriteString("  }\n}\n")
	}
	return b.String(), nil
}

func (c NomadConfig) renderCommon(b *strings.Builder, role string, http, rpc int) {
	fmt.Fprintf(b, `name      = %s
data_dir  = %s
bind_addr = %[3]s
log_level = "INFO"

disable_update_check = true

ports {
  http = %d
  rpc  = %d
  serf = %d
}
advertise {
  http = %[3]s
  rpc  = %[3]s
  serf = %[3]s
}
`, quote("dev-"+role), quote(filepath.Join(c.Dir, role, "data")), quote(Loopback), http, rpc, c.Serf)
	consul := "auto_advertise = false"
	if c.Consul != "" {
		consul = "address = " + quote(c.Consul)
	}
	if c.ConsulIdentities && role == "server" {
		consul += "\n  service_identity {\n    aud = [\"consul.io\"]\n    ttl = \"1h\"\n  }\n  task_identity {\n    aud = [\"consul.io\"]\n    ttl = \"1h\"\n  }"
	}
	fmt.Fprintf(b, "consul {\n  %s\n  server_auto_join = false\n  client_auto_join = false\n}\n", consul)
	if c.Vault == "" {
		return
	}
	identity := ""
	if role == "server" {
		identity = "  default_identity {\n    aud = [\"vault.io\"]\n    ttl = \"1h\"\n  }\n"
	}
	fmt.Fprintf(b, "vault {\n  enabled = true\n  address = %s\n  jwt_auth_backend_path = \"jwt-nomad\"\n%s}\n", quote(c.Vault), identity)
}

// attributes writes m as HCL: strings, numbers, bools, lists of strings, and maps as blocks.
func attributes(b *strings.Builder, m map[string]any, indent string) error {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		switch v := m[k].(type) {
		case string:
			fmt.Fprintf(b, "%s%s = %s\n", indent, k, quote(v))
		case bool, int, int64:
			fmt.Fprintf(b, "%s%s = %v\n", indent, k, v)
		case []string:
			quoted := make([]string, len(v))
			for i, s := range v {
				quoted[i] = quote(s)
			}
			fmt.Fprintf(b, "%s%s = [%s]\n", indent, k, strings.Join(quoted, ", "))
		case map[string]any:
			fmt.Fprintf(b, "%s%s {\n", indent, k)
			if err := attributes(b, v, indent+"  "); err != nil {
				return err
			}
			fmt.Fprintf(b, "%s}\n", indent)
		default:
			return fmt.Errorf("%s: no form in HCL for %T", k, v)
		}
	}
	return nil
}

// quote returns s as a string of HCL, in which ${ starts no expression.
func quote(s string) string { return strings.ReplaceAll(strconv.Quote(s), "${", "$${") }
