package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/procstat"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// paged is a sandbox with a shell that has 60 MB in one variable, and for each line that it is sent forks with it and tells its sum.
type paged struct {
	*daemon
	snapshotDir string
	sb          nodeapi.Sandbox
	want        string
}

// requirePager skips a test where the kernel lets memory come at once only, and says why.
func requirePager(t *testing.T) {
	t.Helper()
	sandboxtest.RequireRoot(t)
	if err := pager.Probe(); err != nil {
		t.Skip(err)
	}
}

func startPaged(t *testing.T) *paged {
	t.Helper()
	requirePager(t)
	p := &paged{snapshotDir: t.TempDir()}
	p.daemon = startDaemon(t, "-criu", sandboxtest.CRIU(t), "-snapshot-dir", p.snapshotDir)
	p.begin()
	return p
}

func (p *paged) begin() {
	p.t.Helper()
	p.sb = p.create(func(r *nodeapi.CreateRequest) { r.Limits.MemoryBytes = 2 << 30 })
	p.remember()
}

// remember starts the shell.
func (p *paged) remember() {
	p.t.Helper()
	const remembers = `mkfifo /tmp/go /tmp/came
x=$(head -c 15000000 /dev/urandom | base64 -w0)
x=$x$x$x
mkfifo /tmp/ready
while :; do
	read c < /tmp/go
	{ echo -n "$x" | sha256sum; echo $c; } > /tmp/came
done`
	_, err := p.client.Start(p.t.Context(), p.sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/bash", "-c", remembers}}})
	must.NoError(p.t, err)
	_, code := p.exec(p.sb, "bash", "-c", "for i in $(seq 6000); do [ -p /tmp/ready ] && exit 0; sleep 0.02; done; exit 1")
	must.Eq(p.t, 0, code)
	p.want = p.ask(p.sb)
	must.StrContains(p.t, p.want, "more")
}

// ask asks for the sum of what the shell remembers.
func (p *paged) ask(sb nodeapi.Sandbox) string {
	p.t.Helper()
	out, code := p.exec(sb, "bash", "-c", "echo more > /tmp/go; cat /tmp/came")
	must.Eq(p.t, 0, code)
	return out
}

func (p *paged) home(id api.SandboxID) string {
	return filepath.Join(p.dir, "s/checkpoints", string(id))
}

func (p *paged) pause() {
	p.t.Helper()
	_, err := p.client.Pause(p.t.Context(), p.sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(p.t, err)
}

func (p *paged) resume() {
	p.t.Helper()
	_, err := p.client.Resume(p.t.Context(), p.sb.ID, nodeapi.ResumeRequest{})
	must.NoError(p.t, err)
}

// serving are the page server of a sandbox and its keeper.
type serving struct{ server, keeper int }

// stopServing pauses and resumes the sandbox until its page server is stopped in the midst of its work.
func (p *paged) stopServing() serving {
	p.t.Helper()
	for range 20 {
		p.pause()
		p.resume()
		if s, ok := p.stopServer(p.sb.ID); ok {
			return s
		}
	}
	p.t.Fatal("the page server is always faster")
	return serving{}
}

// stopServer stops the page server of a sandbox, and reports whether pages are missing yet.
func (p *paged) stopServer(id api.SandboxID) (serving, bool) {
	p.t.Helper()
	s, ok := p.serving(id)
	if !ok || unix.Kill(s.server, unix.SIGSTOP) != nil {
		return s, false
	}
	waitUntil(p.t, "the page server to stop", func() bool {
		stat, err := procstat.Of(s.server)
		return err != nil || stat.State == 'T' || stat.Ended()
	})
	state, err := pager.OpenState(filepath.Join(p.home(id), "pages/state"))
	if err != nil {
		return s, false
	}
	missing := !state.Done()
	must.NoError(p.t, state.Close())
	if !missing {
		_ = unix.Kill(s.server, unix.SIGCONT)
	}
	return s, missing
}

// serving reads the note; false: there is none any more.
func (p *paged) serving(id api.SandboxID) (serving, bool) {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.home(id), "pages/note.json"))
	if errors.Is(err, os.ErrNotExist) {
		return serving{}, false
	}
	must.NoError(p.t, err)
	var note struct{ Server, Keeper struct{ PID int } }
	must.NoError(p.t, json.Unmarshal(b, &note))
	return serving{note.Server.PID, note.Keeper.PID}, true
}

// served waits until every page is there: the images are gone then, and nothing runs for them.
func (p *paged) served(s serving) {
	p.t.Helper()
	waitUntil(p.t, "the images to go", func() bool {
		_, err := os.Stat(p.home(p.sb.ID))
		return errors.Is(err, os.ErrNotExist)
	})
	p.ended(s)
}

func (p *paged) ended(s serving) {
	p.t.Helper()
	for _, pid := range []int{s.server, s.keeper} {
		awaitEnd(p.t, pid)
	}
}

// awaitEnd waits for the end of a page server, or its keeper.
func awaitEnd(t testing.TB, pid int) {
	t.Helper()
	waitUntil(t, "page server and keeper to end", func() bool {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		_, rest, _ := strings.Cut(string(b), ") ")
		return err != nil || strings.HasPrefix(rest, "Z") // an orphan's reaper is not ours
	})
}

func (s serving) goOn(t *testing.T) {
	t.Helper()
	must.NoError(t, unix.Kill(s.server, unix.SIGCONT))
}

// A sandbox whose memory is on its way loses nothing, whoever of those that bring it is killed, and what needs all of it waits.
func TestPaging_outlivesWhoeverIsKilled(t *testing.T) {
	p := startPaged(t)

	t.Log("the daemon is killed")
	s := p.stopServing()
	p.kill()
	p.start()
	s.goOn(t)
	must.Eq(t, p.want, p.ask(p.sb))
	p.served(s)

	t.Log("the daemon is killed, and a pause waits with the next one")
	s = p.stopServing()
	p.kill()
	p.start()
	paused := make(chan error, 1)
	go func() {
		_, err := p.client.Pause(t.Context(), p.sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		paused <- err
	}()
	select {
	case err := <-paused:
		t.Fatalf("paused without all of its memory: %v", err)
	case <-time.After(300 * time.Millisecond): // nothing tells that it waits
	}
	s.goOn(t)
	must.NoError(t, <-paused)
	p.ended(s)
	p.resume()
	must.Eq(t, p.want, p.ask(p.sb))

	t.Log("the page server is killed")
	s = p.stopServing()
	must.NoError(t, unix.Kill(s.server, unix.SIGKILL))
	must.Eq(t, p.want, p.ask(p.sb))
	p.served(s)

	t.Log("both are killed")
	s = p.stopServing()
	p.kill()
	must.NoError(t, unix.Kill(s.server, unix.SIGKILL))
	p.start()
	must.Eq(t, p.want, p.ask(p.sb))
	p.served(s)

	t.Log("a snapshot is made, and copied")
	s = p.stopServing()
	s.goOn(t)
	id := api.NewSnapshotID()
	_, err := p.client.Snapshot(t.Context(), p.sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(t, err)
	copied, err := p.client.Create(t.Context(), restoreRequest(id, "a"))
	must.NoError(t, err)
	must.Eq(t, p.want, p.ask(copied))
	must.Eq(t, p.want, p.ask(p.sb))

	t.Log("the copy is deleted")
	must.NoError(t, p.client.Delete(t.Context(), copied.ID))
	_, err = os.Stat(p.home(copied.ID))
	must.ErrorIs(t, err, os.ErrNotExist)

	t.Log("it is deleted")
	s = p.stopServing()
	s.goOn(t)
	must.NoError(t, p.client.Delete(t.Context(), p.sb.ID))
	p.ended(s)
}

// Where nobody is left who has the rest of its memory a sandbox is ended, and says so: it never runs on with zeros.
func TestPaging_endsWhatItCannotBring(t *testing.T) {
	p := startPaged(t)
	s := p.stopServing()
	must.NoError(t, unix.Kill(s.keeper, unix.SIGKILL))
	awaitEnd(t, s.keeper) // else the next server finds it alive, and nothing is lost
	must.NoError(t, unix.Kill(s.server, unix.SIGKILL))
	waitUntil(t, "the sandbox to end", func() bool {
		got, err := p.client.Get(t.Context(), p.sb.ID)
		must.NoError(t, err)
		return got.State == nodeapi.StateStopped
	})
	got, err := p.client.Get(t.Context(), p.sb.ID)
	must.NoError(t, err)
	must.Eq(t, nodeapi.ExitMemoryLost, got.Exit.Reason)
	must.NoError(t, p.client.Delete(t.Context(), p.sb.ID))
	p.ended(s)
}

// What the first copy of a snapshot waits for is noted beside it and comes first for the next ones; a note that somebody else has made is passed over.
func TestPaging_notesWhatIsTouched(t *testing.T) {
	p := startPaged(t)
	id := api.NewSnapshotID()
	_, err := p.client.Snapshot(t.Context(), p.sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(t, err)
	notes := func() []string {
		found, err := filepath.Glob(filepath.Join(p.snapshotDir, "t/*/notes", string(id)))
		must.NoError(t, err)
		return found
	}
	// copied makes a copy, and asks it while its page server stands still.
	copied := func() {
		sb, err := p.client.Create(t.Context(), restoreRequest(id, "a"))
		must.NoError(t, err)
		s, ok := p.stopServer(sb.ID)
		if ok {
			go func() {
				time.Sleep(50 * time.Millisecond) // nothing tells that it waits: where it does not yet, there is another copy
				_ = unix.Kill(s.server, unix.SIGCONT)
			}()
		}
		must.Eq(t, p.want, p.ask(sb))
		waitUntil(t, "the images to go", func() bool {
			_, err := os.Stat(p.home(sb.ID))
			return errors.Is(err, os.ErrNotExist)
		})
		must.NoError(t, p.client.Delete(t.Context(), sb.ID))
	}
	for range 20 {
		if copied(); len(notes()) > 0 {
			break
		}
	}
	must.Len(t, 1, notes())
	read := func() *checkpoint.Touched {
		back, err := chunk.OpenFolder(p.snapshotDir)
		must.NoError(t, err)
		key, err := chunk.OpenLocalKey(filepath.Join(p.dir, "s/snapshot.key"))
		must.NoError(t, err)
		store, err := chunk.Open(back, key)
		must.NoError(t, err)
		defer store.Close()
		m, err := store.Manifest(t.Context(), "a", string(id))
		must.NoError(t, err)
		b, err := store.Note(t.Context(), m)
		must.NoError(t, err)
		touched, err := checkpoint.ParseTouched(b)
		must.NoError(t, err)
		return touched
	}
	first := read()
	must.Positive(t, len(first.Pages))
	t.Log("pages waited for: ", len(first.Pages))
	copied()
	must.True(t, len(read().Pages) >= len(first.Pages))

	must.NoError(t, os.WriteFile(notes()[0], []byte("made by somebody else"), 0o600))
	copied()
	must.NoError(t, p.client.DeleteSnapshot(t.Context(), "a", id))
	must.Len(t, 0, notes())
}

// While memory is missing every thread stands still until its page server is there, whatever it calls itself: one that was passed over as ended would read zeros, and could
// get at what the others are made to do meanwhile.
func TestPaging_holdsAThreadThatCallsItselfAZombie(t *testing.T) {
	requirePager(t)
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	d.importPython()
	sb := d.create(func(r *nodeapi.CreateRequest) { r.Template, r.Limits.MemoryBytes = "python", 1<<30 })
	const reads = `
import ctypes, os, threading, time
b = bytearray(os.urandom(96 << 20))
for i in range(0, len(b), 4096):
    b[i] = 1 + i // 4096 % 255
def read():
    ctypes.CDLL(None).prctl(15, b"a) Z 1 2 3", 0, 0, 0)
    n = 0
    while True:
        for _ in range(100):
            if 0 in b[::4096]:
                open('/home/user/wrong', 'w').close()
        n += 1
        open('/home/user/ready', 'w').write(str(n))
threading.Thread(target=read).start()
time.sleep(1000)
`
	_, err := d.client.Start(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"python3", "-c", reads}}})
	must.NoError(t, err)
	further := func() {
		t.Helper()
		out, code := d.exec(sb, "bash", "-c", `cd; for i in $(seq 3000); do n=$(cat ready 2>/dev/null); [ "${n:-0}" -gt $((${first:-0}+2)) ] && [ -n "$first" ] && exec ls; first=${first:-$n}; sleep 0.02; done; ls; exit 1`)
		must.Eq(t, 0, code, must.Sprint("the thread reads no more: ", out))
		must.StrNotContains(t, out, "wrong", must.Sprint("it has read what was not there"))
	}
	further()
	for range 5 {
		_, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		must.NoError(t, err)
		_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(t, err)
		further()
	}
}
