package node

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// say writes lines to a terminal and returns what it says until a mark comes.
func say(t *testing.T, s *nodeapi.Stream, text, mark string) {
	t.Helper()
	_, err := s.Write([]byte(text + "\n"))
	must.NoError(t, err)
	for said := ""; !strings.Contains(said, mark); {
		f, err := s.Recv()
		must.NoError(t, err, must.Sprint(said))
		must.NotEq(t, frame.Exit, f.Type, must.Sprint(said))
		if _, data, err := frame.Output(f.Payload); err == nil {
			said += string(data)
		}
	}
}

// importPython imports the base template, which has a Python, as "python". On a new machine it is made here.
func (d *daemon) importPython() {
	d.t.Helper()
	path, err := base.Build(d.t.Context(), base.Options{Progress: os.Stderr})
	must.NoError(d.t, err)
	tar, err := os.Open(path)
	must.NoError(d.t, err)
	defer tar.Close()
	_, err = d.client.ImportTemplate(d.t.Context(), "python", tar)
	must.NoError(d.t, err)
}

// startREPL starts a node that makes checkpoints, and in a sandbox of it a Python that is spoken to by its terminal.
func startREPL(t *testing.T) (*daemon, nodeapi.Sandbox, *nodeapi.Stream) {
	t.Helper()
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	d.importPython()
	sb, repl := d.repl("user")
	return d, sb, repl
}

// repl makes a sandbox with a user's Python that is spoken to by its terminal.
func (d *daemon) repl(user string) (nodeapi.Sandbox, *nodeapi.Stream) {
	d.t.Helper()
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template = "python" })
	repl, err := d.client.Exec(d.t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"python3", "-q"}, User: user, TTY: true, Stdin: true, Env: []string{"PYTHON_BASIC_REPL=1"}}})
	must.NoError(d.t, err)
	return sb, repl
}

// A Python with a variable, an open file, a child, a server socket and a terminal goes to disk, its daemon is killed, and all is there.
func TestReal_pausePython(t *testing.T) {
	d, sb, repl := startREPL(t)
	say(t, repl, "x = 6*7; print('value', x)", "value 42")
	say(t, repl, "f = open('/tmp/open', 'w+'); n = f.write('half'); f.flush(); print('file', n)", "file 4")
	say(t, repl, "import subprocess; c = subprocess.Popen(['sleep', '1000']); print('child', c.poll())", "child None")
	say(t, repl, "import socket; s = socket.create_server(('127.0.0.1', 8123)); print('server', s.fileno() > 0)", "server True")
	say(t, repl, "import time; m = time.monotonic(); print('clock', m > 0)", "clock True")
	pid := repl.Process.PID
	must.NoError(t, repl.Close())

	_, err := d.client.Pause(t.Context(), sb.ID, nodeapi.PauseRequest{})
	must.NoError(t, err)
	waitUntil(t, "checkpoint", func() bool {
		got, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, "", got.Pause.Failure)
		return got.Pause.Depth == nodeapi.DepthCheckpointed
	})
	d.kill()
	d.start()
	begin := time.Now()
	_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	t.Logf("resumed in %s", time.Since(begin))

	repl, err = d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: pid}})
	must.NoError(t, err)
	defer repl.Close()
	say(t, repl, "print('still', x)", "still 42")
	say(t, repl, "n = f.write(' and whole'); f.flush(); n = f.seek(0); print('read', f.read())", "read half and whole")
	say(t, repl, "print('alive', c.poll()); c.kill(); print('ended', c.wait())", "ended -9")
	say(t, repl, "a = socket.create_connection(('127.0.0.1', 8123)); b = s.accept()[0]; n = a.send(b'hello'); print('heard', b.recv(9))", "heard b'hello'")
	say(t, repl, "print('clock', 0 < time.monotonic() - m < 60)", "clock True")
	var out bytes.Buffer
	_, err = repl.Write([]byte("exit()\n"))
	must.NoError(t, err)
	exit, err := repl.Copy(&out, nil)
	must.NoError(t, err)
	must.Eq(t, 0, exit.Code)
}

// What is held of /tmp and /dev/shm while nothing has a name there is not in the images as files are.
func TestReal_pausePythonWithNamelessMemory(t *testing.T) {
	d, sb, repl := startREPL(t)
	defer func() { _ = repl.Close() }()
	pid := repl.Process.PID
	for _, c := range [][2]string{
		{"import os, mmap, ctypes; libc = ctypes.CDLL(None); w = libc.inotify_init(); print('watch', libc.inotify_add_watch(w, b'/tmp', 0x100))", "watch 1"},
		{"os.chdir('/tmp'); d = os.open('/tmp', os.O_DIRECTORY); print('entries', os.listdir(d))", "entries []"},
		{"f = os.open('/tmp', os.O_TMPFILE | os.O_RDWR); n = os.write(f, b'no name'); print('nameless', n)", "nameless 7"},
		{"g = open('/dev/shm/s', 'w+b'); n = g.truncate(8192); os.unlink('/dev/shm/s'); m = mmap.mmap(g.fileno(), 8192); m[4096:4099] = b'abc'; print('mapped', n)", "mapped 8192"},
	} {
		say(t, repl, c[0], c[1])
	}
	for range 2 {
		must.NoError(t, repl.Close())
		_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		must.NoError(t, err)
		_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(t, err)
		repl, err = d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: pid}})
		must.NoError(t, err)
		do(t, repl, "pass") // what it has said before comes first
		for _, c := range [][2]string{
			{"print('entries', os.listdir(d), os.getcwd())", "entries [] /tmp"},
			{"n = os.lseek(f, 0, 0); print('nameless', os.read(f, 99))", "nameless b'no name'"},
			{"print('mapped', m[4096:4099], len(m))", "mapped b'abc' 8192"},
			{"h = open('x', 'w'); h.close(); print('seen', b'x' in os.read(w, 999)); os.unlink('/tmp/x')", "seen True"},
		} {
			say(t, repl, c[0], c[1])
		}
	}
}
