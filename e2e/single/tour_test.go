// Package single runs the programs as a user of one machine does: soulbox dev in one shell, the command line in another.
package single

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/e2e/host"
)

// TestDev_isAMinutesTour is what the README shows.
func TestDev_isAMinutesTour(t *testing.T) {
	m := newMachine(t)
	state := filepath.Join(m.dir, "state")
	dev := m.start(t, "soulbox", "dev", "-first-sandbox", "-state-dir", state, "-listen", m.listen, "-base", baseTar(t))
	poll(t, "the first sandbox's output", func() error {
		b, err := os.ReadFile(dev.log)
		if err != nil {
			return err
		}
		if !bytes.Contains(b, []byte("Hello from")) || !bytes.Contains(b, []byte("exit code 0")) {
			return fmt.Errorf("log: %s", b)
		}
		return nil
	})
	m.readKey(t, filepath.Join(state, "server"))
	id := m.create(t, "-template", "base", "-metadata", "tour=yes")

	t.Run("exec", func(t *testing.T) {
		must.Eq(t, "42\n", m.soulbox(t, "exec", id, "--", "python3", "-c", "print(6*7)"))
		_, _, code := m.trySoulbox(t, "exec", id, "--", "sh", "-c", "exit 9")
		must.Eq(t, 9, code)
		_, stderr, code := m.trySoulbox(t, "exec", id, "--", "no-such-command")
		must.Eq(t, 127, code)
		must.StrContains(t, stderr, "no-such-command")
		_, stderr, code = m.trySoulbox(t, "exec", "-cwd", "/no/such/folder", id, "--", "true")
		must.NotEq(t, 0, code)
		must.StrContains(t, stderr, "/no/such/folder")
	})
	t.Run("root inside works", func(t *testing.T) {
		must.Eq(t, "0\n", m.soulbox(t, "exec", id, "--", "sudo", "id", "-u"))
		must.StrContains(t, m.soulbox(t, "exec", id, "--", "node", "-e", "console.log('node', 1+1)"), "node 2")
		must.StrContains(t, m.soulbox(t, "exec", id, "--", "git", "--version"), "git version")
	})
	t.Run("exec with a terminal", func(t *testing.T) { m.execTerminal(t, id) })
	t.Run("exec passes stdin on", func(t *testing.T) {
		cmd := m.program(t, "soulbox", "exec", "-i", id, "--", "sha256sum")
		input := bytes.Repeat([]byte("0123456789\x00\xff\r\n\x03\x04"), 1<<16)
		cmd.Stdin = bytes.NewReader(input)
		out, err := cmd.CombinedOutput()
		must.NoError(t, err)
		must.Eq(t, fmt.Sprintf("%x  -\n", sha256.Sum256(input)), string(out))
	})
	t.Run("cp both ways", func(t *testing.T) { m.copyBothWays(t, id) })
	t.Run("list", func(t *testing.T) {
		must.StrContains(t, m.soulbox(t, "sandbox", "list", "-metadata", "tour=yes"), id)
		must.StrNotContains(t, m.soulbox(t, "sandbox", "list", "-metadata", "tour=no"), id)
		must.StrContains(t, m.soulbox(t, "sandbox", "info", id), "running")
	})
	t.Run("destroy", func(t *testing.T) {
		m.soulbox(t, "sandbox", "destroy", id)
		must.StrNotContains(t, m.soulbox(t, "sandbox", "list"), id)
		_, stderr, code := m.trySoulbox(t, "exec", id, "--", "true")
		must.NotEq(t, 0, code)
		must.StrContains(t, stderr, id)
	})
	t.Run("bad input is named", func(t *testing.T) {
		for _, tc := range []struct {
			args []string
			want string
		}{
			{[]string{"-template", "no-such-template"}, "no-such-template"},
			{[]string{"-template", "base", "-memory", "-5"}, "memory"},
			{[]string{"-template", "base", "-cpu", "1000000"}, "cpu"},
			{[]string{"-template", "base", "-timeout", "-1s"}, "timeout"},
			{[]string{"-template", "base", "-timeout", "9000h"}, "imeout"},
			{[]string{"-template", "base", "-hostname", "a b"}, "hostname"},
			{[]string{"-template", "base", "-user", "nobody-here"}, "nobody-here"},
			{[]string{"-template", "base", "-cwd", "/no/such/folder"}, "/no/such/folder"},
		} {
			_, stderr, code := m.trySoulbox(t, append([]string{"sandbox", "create"}, tc.args...)...)
			must.NotEq(t, 0, code, must.Sprint(tc.args))
			must.StrContains(t, stderr, tc.want)
		}
	})
	dev.stop(t)
	m.devHost(state).NothingLeftOfNode(t)
}

func (m *machine) devHost(state string) host.Node {
	return host.Node{StateDir: filepath.Join(state, "node"), RunDir: filepath.Join(state, "run"), CgroupParent: "no group of ours alone"}
}

// create makes a sandbox and returns its id.
func (m *machine) create(t *testing.T, args ...string) string {
	t.Helper()
	out := m.soulbox(t, append([]string{"sandbox", "create", "-json"}, args...)...)
	var sb struct {
		ID string `json:"id"`
	}
	must.NoError(t, json.Unmarshal([]byte(out), &sb), must.Sprint(out))
	must.NotEq(t, "", sb.ID)
	return sb.ID
}

func (m *machine) execTerminal(t *testing.T, id string) {
	cmd := m.program(t, "soulbox", "exec", "-it", id, "bash", "--norc")
	term, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 120})
	must.NoError(t, err)
	defer term.Close()
	screen := &screen{}
	go func() { _, _ = io.Copy(screen, term) }() // ends with the terminal
	say := func(text string) {
		_, err := term.WriteString(text)
		must.NoError(t, err)
	}
	poll(t, "a prompt", screen.has("$ "))
	say("stty size\n")
	poll(t, "the terminal's size", screen.has("40 120"))
	must.NoError(t, pty.Setsize(term, &pty.Winsize{Rows: 33, Cols: 99}))
	poll(t, "the new size", func() error {
		say("stty size\n")
		return screen.has("33 99")()
	})
	say("echo star''ted; sleep 1000\n")
	poll(t, "the command to run", screen.has("started"))
	say("\x03")
	poll(t, "ctrl-C to end the command", func() error {
		say("echo after=$((40+2))\n") // the shell drops what is typed before it is back
		return screen.has("after=42")()
	})
	say("exit 5\n")
	err = cmd.Wait()
	must.Error(t, err)
	must.Eq(t, 5, cmd.ProcessState.ExitCode())
}

// screen collects what a terminal shows.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) has(text string) func() error {
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !strings.Contains(s.b.String(), text) {
			return fmt.Errorf("screen: %q", s.b.String())
		}
		return nil
	}
}

func (m *machine) copyBothWays(t *testing.T, id string) {
	from := filepath.Join(m.dir, "from")
	must.NoError(t, os.MkdirAll(filepath.Join(from, "sub"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(from, "sub", "run.sh"), []byte("#!/bin/sh\necho copied\n"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(from, "data"), bytes.Repeat([]byte{0, 1, 0xff}, 1<<20), 0o600))
	m.soulbox(t, "cp", "-r", from, id+":/home/user/there")
	must.Eq(t, "copied\n", m.soulbox(t, "exec", id, "--", "/home/user/there/sub/run.sh"))
	back := filepath.Join(m.dir, "back")
	m.soulbox(t, "cp", "-r", id+":/home/user/there", back)
	want, err := os.ReadFile(filepath.Join(from, "data"))
	must.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(back, "data"))
	must.NoError(t, err)
	must.True(t, bytes.Equal(want, got))
	fi, err := os.Stat(filepath.Join(back, "sub", "run.sh"))
	must.NoError(t, err)
	must.Eq(t, 0o755, fi.Mode().Perm())
	_, stderr, code := m.trySoulbox(t, "cp", id+":/no/such/file", m.dir)
	must.NotEq(t, 0, code)
	must.StrContains(t, stderr, "/no/such/file")
}
