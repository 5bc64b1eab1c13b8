// Package imports holds the rules of who may import whom, and that every package says what it is for. It has no code of its
// own.
package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

const module = "github.com/soulbox-dev/soulbox"

type pkg struct {
	ImportPath string
	Doc        string
	Standard   bool
	GoFiles    []string
	Imports    []string
	Deps       []string
	// XTestImports and TestImports are not ruled: a test may use what it compares with.
}

func (p pkg) path() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

// packages lists those of this module, for Linux with the tags of a release.
func packages(t *testing.T) []pkg {
	t.Helper()
	root, err := filepath.Abs("../..")
	must.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-tags=hashicorpmetrics", "-json=ImportPath,Doc,GoFiles,Imports,Deps", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	var list []pkg
	dec := json.NewDecoder(out)
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		must.NoError(t, err)
		list = append(list, p)
	}
	must.NoError(t, cmd.Wait())
	must.Greater(t, 5, len(list))
	return list
}

// below reports whether path is one of dirs or below one.
func below(path string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") })
}

// own returns the part of an import path inside this module.
func own(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// A rule says for the packages below Of what may not be among their imports; Deep includes what these import in turn.
var rules = []struct {
	name string
	of   []string
	not  []string // packages of the project that are exempt
	deep bool
	bad  func(imported string) bool
}{
	{
		name: "what runs inside a sandbox is the standard library and x/sys",
		of:   []string{"nomad-driver/guest", "nomad-driver/cmd/soulbox-init", "nomad-driver/checkpoint/pager"},
		deep: true,
		bad: func(p string) bool {
			q, ours := own(p)
			return !(ours && below(q, "nomad-driver/guest", "nomad-driver/checkpoint/pager") || below(p, "golang.org/x/sys", "vendor") || !ours && standard(p))
		},
	},
	{
		name: "a sandbox and its concerns do not know the node",
		of: []string{
			"nomad-driver/sandbox", "nomad-driver/cgroup", "nomad-driver/seccomp", "nomad-driver/rootfs", "nomad-driver/network",
			"nomad-driver/checkpoint", "nomad-driver/metrics", "nomad-driver/guest", "nomad-driver/probe",
		},
		deep: true,
		bad: func(p string) bool {
			q, ours := own(p)
			return ours && below(q, "nomad-driver/node", "nomad-driver/driver", "tools", "e2e")
		},
	},
	{
		name: "nothing under nomad-driver imports control but its api types",
		of:   []string{"nomad-driver"},
		deep: true,
		bad: func(p string) bool {
			q, ours := own(p)
			return ours && below(q, "control", "e2e") && !below(q, "control/api")
		},
	},
	{
		name: "the API's types and client import the frame codec and envd's messages alone, and nothing of the stack",
		of:   []string{"control/api"},
		deep: true,
		bad: func(p string) bool {
			q, ours := own(p)
			return ours && !below(q, "control/api", "nomad-driver/guest/frame", "nomad-driver/envd/wire") || below(p, "github.com/hashicorp/nomad",
				"github.com/hashicorp/consul", "github.com/hashicorp/vault", "github.com/hashicorp/raft")
		},
	},
	{
		name: "the Terraform provider and the Vault plugin import control/api only",
		of:   []string{"terraform-provider", "vault-plugin"},
		bad: func(p string) bool {
			q, ours := own(p)
			return ours && !below(q, "control/api", "terraform-provider", "vault-plugin")
		},
	},
	{
		name: "the clients of Nomad, Consul and Vault are behind the seams",
		of:   []string{""},
		// control/cli/service makes the clients that it hands to the seams; control/dev starts the agents themselves.
		not: []string{
			"control/placement", "control/health", "control/keys", "nomad-driver/node/consul", "control/dev", "control/cli/service",
			"vault-plugin", "e2e",
		},
		bad: func(p string) bool {
			return below(p, "github.com/hashicorp/nomad/api", "github.com/hashicorp/consul", "github.com/hashicorp/vault")
		},
	},
	{
		name: "nomad/plugins, and the types that it is made of, are linked by the driver alone",
		of:   []string{""},
		bad: func(p string) bool {
			return below(p, "github.com/hashicorp/nomad") && !below(p, "github.com/hashicorp/nomad/api")
		},
		not: []string{"nomad-driver/driver", "nomad-driver/cmd/nomad-driver-soulbox", "e2e"},
	},
	{
		name: "the driver links nothing else of Nomad",
		of:   []string{"nomad-driver/driver", "nomad-driver/cmd/nomad-driver-soulbox"},
		bad: func(p string) bool {
			return below(p, "github.com/hashicorp/nomad") && !below(p,
				"github.com/hashicorp/nomad/plugins",
				"github.com/hashicorp/nomad/client/structs",         // in the plugins' own signatures
				"github.com/hashicorp/nomad/drivers/shared/eventer") // fans task events out
		},
	},
	{
		name: "product code imports no tests and no generators",
		of:   []string{"control", "nomad-driver", "terraform-provider", "vault-plugin"},
		bad: func(p string) bool {
			q, ours := own(p)
			return ours && below(q, "e2e", "tools/imports")
		},
	},
}

func TestImports(t *testing.T) {
	list := packages(t)
	for _, r := range rules {
		t.Run(strings.ReplaceAll(r.name, " ", "_"), func(t *testing.T) {
			for _, p := range list {
				if !ruled(p.path(), r.of) || below(p.path(), r.not...) || strings.HasSuffix(p.path(), "test") {
					continue
				}
				imports := p.Imports
				if r.deep {
					imports = p.Deps
				}
				for _, i := range imports {
					if r.bad(i) {
						t.Errorf("%s imports %s: %s", p.ImportPath, i, r.name)
					}
				}
			}
		})
	}
}

func ruled(path string, of []string) bool {
	return slices.Contains(of, "") || below(path, of...)
}

// The rules themselves: each refuses what it is there for.
func TestImports_rulesRefuse(t *testing.T) {
	for i, bad := range []string{
		"github.com/creack/pty", module + "/nomad-driver/node/nodeapi", module + "/control/state", module + "/control/state",
		module + "/control/server", "github.com/hashicorp/vault/api", "github.com/hashicorp/nomad/plugins/drivers",
		"github.com/hashicorp/nomad/nomad/structs", module + "/e2e/vm",
	} {
		must.True(t, rules[i].bad(bad), must.Sprint(rules[i].name))
	}
	for i, good := range []string{
		"golang.org/x/sys/unix", module + "/nomad-driver/guest", module + "/control/api", module + "/nomad-driver/guest/frame",
		module + "/control/api", "github.com/hashicorp/raft", "github.com/hashicorp/nomad/api",
		"github.com/hashicorp/nomad/plugins/drivers", module + "/control/api",
	} {
		must.False(t, rules[i].bad(good), must.Sprint(rules[i].name))
	}
}

func TestPackages_haveAComment(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment: say what it owns and what it never does", p.ImportPath)
		}
	}
}
