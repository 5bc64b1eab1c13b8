// Package sdk runs the examples: the official E2B clients, unmodified, and the Go client, against `soulbox dev`.
package sdk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
	"github.com/soulbox-dev/soulbox/tools/stack"
)

const (
	startTime   = 3 * time.Minute // until soulbox dev serves, with its template in the cache
	exampleTime = 3 * time.Minute // of one example: only a hang takes so long
)

// TestExamples_runWithTheOfficialClients is that all files of the folder do what they say.
func TestExamples_runWithTheOfficialClients(t *testing.T) {
	work := t.TempDir()
	examples, err := filepath.Abs("../../examples/sdk-js")
	must.NoError(t, err)
	must.NoError(t, os.CopyFS(work, os.DirFS(examples)))
	modules := install(t, examples)
	must.NoError(t, os.Symlink(modules, filepath.Join(work, "node_modules")))
	for _, pkg := range []string{"e2b", "@e2b/code-interpreter", "@e2b/cli"} {
		t.Logf("%s %s", pkg, version(t, filepath.Join(modules, pkg, "package.json")))
	}
	env := serve(t)

	files, err := filepath.Glob(filepath.Join(work, "*.mjs"))
	must.NoError(t, err)
	must.SliceNotEmpty(t, files)
	for _, f := range slices.Concat(files, []string{filepath.Join(work, "cli.sh")}) {
		name := filepath.Base(f)
		t.Run(name, func(t *testing.T) {
			program := "node"
			if filepath.Ext(name) == ".sh" {
				program = "sh"
			}
			ctx, cancel := context.WithTimeout(t.Context(), exampleTime)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, name)
			cmd.Dir, cmd.Env = work, env
			out, err := cmd.CombinedOutput()
			must.NoError(t, err, must.Sprintf("%s", out))
			want := strings.TrimSuffix(name, filepath.Ext(name)) + ": ok\n"
			must.StrHasSuffix(t, want, string(out))
		})
	}
	t.Run("go", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), exampleTime)
		defer cancel()
		cmd := exec.CommandContext(ctx, "go", "run", "-tags=hashicorpmetrics", "./examples/go")
		cmd.Dir, cmd.Env = "../..", env
		out, err := cmd.CombinedOutput()
		must.NoError(t, err, must.Sprintf("%s", out))
		must.Eq(t, "5 characters\nHELLO\n", string(out))
	})
}

// install puts the packages into the cache, once for each set of them, and returns the folder node_modules.
func install(t *testing.T, examples string) string {
	t.Helper()
	list, err := os.ReadFile(filepath.Join(examples, "package.json"))
	must.NoError(t, err)
	cache, err := os.UserCacheDir()
	must.NoError(t, err)
	sum := sha256.Sum256(list)
	dir := filepath.Join(cache, "soulbox", "sdk-js-"+hex.EncodeToString(sum[:6]))
	modules := filepath.Join(dir, "node_modules")
	if _, err := os.Stat(filepath.Join(dir, "complete")); err == nil {
		return modules
	}
	must.NoError(t, os.MkdirAll(dir, 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "package.json"), list, 0o644))
	cmd := exec.CommandContext(t.Context(), "npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprintf("npm install: %s", out))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644))
	return modules
}

func version(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must.NoError(t, err)
	var p struct{ Version string }
	must.NoError(t, json.Unmarshal(b, &p))
	return p.Version
}

var keyForm = regexp.MustCompile(`e2b_[0-9a-f]{80}`)

// serve starts soulbox dev with its two templates, and returns the environment of its clients. It ends with the test.
func serve(t *testing.T) []string {
	t.Helper()
	binaries.Path(t, "soulbox-init") // found beside the others
	tar, err := base.Build(t.Context(), base.Options{})
	must.NoError(t, err)
	_, err = base.Build(t.Context(), base.Options{Recipe: base.Interpreter, Progress: os.Stderr})
	must.NoError(t, err)
	// Unix sockets must fit into 107 bytes: the test's own folder may be too deep.
	dir, err := os.MkdirTemp("", "sbsdk")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	listen := agenttest.Address(t)

	log, err := os.Create(filepath.Join(dir, "log"))
	must.NoError(t, err)
	defer log.Close()
	home := filepath.Join(dir, "home")
	must.NoError(t, os.Mkdir(home, 0o700))
	cmd := exec.Command(binaries.Path(t, "soulbox"), "dev", "-state-dir", filepath.Join(dir, "state"), "-listen", listen, "-base", tar)
	programs, err := stack.Dir() // this machine's, for CRIU
	must.NoError(t, err)
	cmd.Env = append(os.Environ(), "HOME="+home, stack.Env+"="+programs)
	cmd.Stdout, cmd.Stderr = log, log
	must.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended
		if err := <-done; err != nil || t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("soulbox dev: %v\n%s", err, b[max(0, len(b)-4000):])
		}
	})
	url := "http://" + listen
	key := await(t, done, func() (string, error) {
		b, err := os.ReadFile(log.Name())
		if err != nil {
			return "", err
		}
		key := keyForm.Find(b)
		if key == nil || !bytes.Contains(b, []byte("Ctrl-C ends")) {
			return "", fmt.Errorf("it does not serve yet: %s", b)
		}
		resp, err := http.Get(url + "/health")
		if err != nil {
			return "", err
		}
		return string(key), resp.Body.Close()
	})
	env := append(os.Environ(), "E2B_API_URL="+url, "E2B_SANDBOX_URL="+url, "E2B_API_KEY="+key, "SOULBOX_ADDR="+url, "SOULBOX_API_KEY="+key, "NO_COLOR=1")
	make := exec.CommandContext(t.Context(), binaries.Path(t, "soulbox"), "template", "make", base.Interpreter.Name)
	make.Env = env // with this machine's own cache
	out, err := make.CombinedOutput()
	must.NoError(t, err, must.Sprintf("%s", out))
	return env
}

// await polls until try has an answer, or the program has ended.
func await(t *testing.T, done chan error, try func() (string, error)) string {
	t.Helper()
	end := time.Now().Add(startTime)
	for {
		v, err := try()
		if err == nil {
			return v
		}
		select {
		case end := <-done:
			done <- end
			t.Fatalf("soulbox dev ended: %v; %v", end, err)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
