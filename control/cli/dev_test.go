package cli

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// devRun is a development server of a test in a process of its own.
type devRun struct {
	dir string
	out *output
	end func(syscall.Signal) error
}

func startDev(t *testing.T, dir string, args ...string) *devRun {
	t.Helper()
	cmd := (&fake{Server: &httptest.Server{}}).program(t, append([]string{
		"dev", "-state-dir", dir, "-listen", "127.0.0.1:0", "-init", sandboxtest.Init(t), "-base", sandboxtest.Lower(t),
	}, args...)...)
	stdout, err := cmd.StdoutPipe()
	must.NoError(t, err)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	must.NoError(t, cmd.Start())
	ended := false
	d := &devRun{dir: dir, out: collectOutput(stdout)}
	d.end = func(sig syscall.Signal) error {
		if ended {
			return nil
		}
		ended = true
		_ = cmd.Process.Signal(sig)
		for range d.out.b { // until it has ended
		}
		err := cmd.Wait()
		if t.Failed() {
			t.Logf("dev wrote to stderr: %s", stderr.String())
		}
		return err
	}
	t.Cleanup(func() { _ = d.end(syscall.SIGINT) })
	d.out.wait(t, "Ctrl-C ends")
	return d
}

// client returns calls of the program that know the server from what it printed.
func (d *devRun) client(t *testing.T) *call {
	t.Helper()
	c := &call{dir: t.TempDir(), env: map[string]string{"HOME": t.TempDir()}}
	for line := range strings.Lines(d.out.seen.String()) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			k, v, _ := strings.Cut(v, "=")
			c.env[k] = v
		}
	}
	must.MapLen(t, 3, c.env, must.Sprint(d.out.seen.String()))
	return c
}

// noLeftovers checks that the machine is as before.
func (d *devRun) noLeftovers(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must.NoError(t, err)
	must.StrNotContains(t, string(mounts), d.dir)
	for _, pattern := range []string{filepath.Join(d.dir, "run/sandboxes/*"), filepath.Join(d.dir, "node/sandboxes/*")} {
		left, err := filepath.Glob(pattern)
		must.NoError(t, err)
		must.SliceEmpty(t, left)
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sbc")
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func TestDev_aSandboxFromCreateToDestroy(t *testing.T) {
	sandboxtest.RequireRoot(t)
	d := startDev(t, shortDir(t))
	c := d.client(t)
	do := func(want int, args ...string) string {
		t.Helper()
		must.Eq(t, want, c.run(t, args...), must.Sprint(args, c.stderr))
		return c.stdout
	}
	id := strings.TrimSpace(do(0, "sandbox", "create", "-q", "-env=A=1", "-metadata=p=x", "-timeout=5m", "--", "bash", "-c", "echo out; echo err >&2; read -t 600 <> <(:)"))
	must.Eq(t, id+"\n", do(0, "sandbox", "list", "-q", "-metadata=p=x"))
	must.Eq(t, "1\n", do(0, "exec", id, "--", "bash", "-c", "echo $A"))
	do(7, "exec", id, "bash", "-c", "exit 7")
	do(137, "exec", id, "bash", "-c", "kill -9 $$")
	do(127, "exec", id, "nosuch")
	do(125, "exec", "-cwd=/nosuch", id, "bash")
	c.stdin = "\x00\x01~.\xff"
	must.Eq(t, c.stdin, do(0, "exec", "-i", id, "cat"))

	put(t, filepath.Join(c.dir, "src/a/run.sh"), "#!/bin/bash\necho ran\n", 0o755)
	must.NoError(t, os.Symlink("a/run.sh", filepath.Join(c.dir, "src/link")))
	do(0, "cp", "-r", "src", id+":/tmp/there")
	must.Eq(t, "ran\n", do(0, "exec", id, "/tmp/there/link"))
	do(0, "cp", "-r", id+":/tmp/there", "back")
	holds(t, filepath.Join(c.dir, "back/a/run.sh"), "#!/bin/bash\necho ran\n", 0o755)
	do(0, "exec", id, "bash", "-c", "ln -s /etc/passwd /tmp/there/evil")
	do(1, "cp", "-r", id+":/tmp/there", "again")
	must.StrContains(t, c.stderr, "Left out evil")
	must.Eq(t, "ran\n", do(0, "exec", id, "bash", "-c", "cd /tmp/there && a/run.sh"))

	must.Eq(t, "out\n", do(0, "logs", "-raw", id))
	must.Eq(t, "err\n", do(0, "logs", "-raw", "-stderr", "-tail=1", id))
	must.StrContains(t, do(0, "logs", "-source=stderr", id), " stderr: ")
	must.StrContains(t, do(0, "sandbox", "info", id), "Health")
	must.StrContains(t, do(0, "version"), "Server")
	must.StrContains(t, do(0, "template", "list"), "base")
	do(0, "template", "import", "other", sandboxtest.Lower(t))
	do(0, "template", "delete", "other")
	do(1, "sandbox", "create", "-template=other")
	do(0, "sandbox", "destroy", id)
	do(1, "sandbox", "destroy", id)
	must.StrContains(t, do(0, "sandbox", "list", "-all"), "stopped")

	do(0, "sandbox", "create") // which the end ends
	must.NoError(t, d.end(syscall.SIGINT))
	d.noLeftovers(t)
}

func TestDev_keepFindsTheSandboxesAgain(t *testing.T) {
	sandboxtest.RequireRoot(t)
	dir := shortDir(t)
	d := startDev(t, dir, "-keep")
	c := d.client(t)
	must.Eq(t, 0, c.run(t, "sandbox", "create", "-q"), must.Sprint(c.stderr))
	id := strings.TrimSpace(c.stdout)
	must.Eq(t, 0, c.run(t, "exec", id, "bash", "-c", "echo kept > /tmp/f"))
	must.NoError(t, d.end(syscall.SIGTERM))

	d = startDev(t, dir)
	c = d.client(t)
	eventually(t, "the sandbox", func() bool { return c.run(t, "exec", id, "cat", "/tmp/f") == 0 })
	must.Eq(t, "kept\n", c.stdout)
	must.NoError(t, d.end(syscall.SIGINT))
	d.noLeftovers(t)
}

func TestDev_startsInASecond(t *testing.T) {
	sandboxtest.RequireRoot(t)
	dir := shortDir(t)
	must.NoError(t, startDev(t, dir).end(syscall.SIGINT)) // makes the template
	start := time.Now()
	d := startDev(t, dir)
	took := time.Since(start)
	t.Logf("from the start of the program to its last word: %s", took)
	must.NoError(t, d.end(syscall.SIGINT))
	must.Less(t, 10*time.Second, took) // a machine that compiles something else meanwhile; alone it is 0.1 s
}
