package sandbox_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	criu_core "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// aheadEngine returns an engine that can copy memory before a dump, or skips the test.
func aheadEngine(t *testing.T) *checkpoint.Engine {
	t.Helper()
	e := engine(t)
	if err := e.Ahead(); err != nil {
		t.Skip(err)
	}
	return e
}

// churns is a shell with 10 MB that it keeps, beside one that changes up to a MiB of its own all the time. It tells the sum of what it keeps.
const churns = `mkfifo /tmp/go /tmp/came; exec 3<>/tmp/go
bash -c 'x=$(head -c 4000000 /dev/urandom | base64 -w0); y=; while :; do y=$y$RANDOM$RANDOM$RANDOM; [ ${#y} -gt 400000 ] && y=; done' &
x=$(head -c 7500000 /dev/urandom | base64 -w0)
while read -u 3 c; do echo -n "$x" | sha256sum > /tmp/came; done`

// What is dumped after a copy ahead is, once merged, what a dump of the same moment has that had none; and it comes back, at once and later.
func TestCheckpoint_memoryCopiedAheadIsThatOfTheDump(t *testing.T) {
	e := aheadEngine(t)
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	ask := startAsked(t, s, churns)
	want := ask(s)
	must.StrHasSuffix(t, "-\n", want)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	base := filepath.Join(filepath.Dir(h.StateDir), "a")
	dir, whole := sandbox.CheckpointDir(base), sandbox.CheckpointDir(base+"-whole")
	begin := time.Now()
	ahead, err := s.CopyAhead(ctx, e, dir, 1<<20)
	must.NoError(t, err)
	must.NotNil(t, ahead)
	took := time.Since(begin)
	must.NoError(t, s.Park(ctx))
	begin = time.Now()
	must.NoError(t, s.Freeze(ctx))
	d, err := s.Checkpoint(ctx, startDump(t, e), dir, sandbox.CheckpointOptions{Ahead: ahead})
	must.NoError(t, err)
	with := time.Since(begin)
	lacking := d.Stats.Bytes
	begin = time.Now()
	_, err = s.Checkpoint(ctx, startDump(t, e), whole, sandbox.CheckpointOptions{Alone: true})
	must.NoError(t, err)
	without := time.Since(begin)
	begin = time.Now()
	all, err := ahead.Merge(dir.Images())
	must.NoError(t, err)
	t.Logf("copied %d MiB ahead in %v, %d rounds, frozen %v at most; then frozen %v for %d MiB, and merged in %v; without, frozen %v for %d MiB",
		ahead.Bytes>>20, took, ahead.Rounds, ahead.Frozen, with, lacking>>20, time.Since(begin), without, all>>20)
	must.Less(t, all/2, lacking, must.Sprint("most of it should have been copied ahead"))
	_, err = os.Lstat(filepath.Join(base, "ahead"))
	must.ErrorIs(t, err, os.ErrNotExist)
	sameImages(t, whole.Images(), dir.Images())
	must.NoError(t, s.End(ctx))
	rc := sandbox.RestoreConfig{Config: c, Engine: e, Dir: dir, Dump: d}
	if e.Lazy() == nil {
		rc.Lazy = &sandbox.Lazy{Dir: base + "/pages", Least: 1 << 20}
	}
	s, err = sandbox.Restore(ctx, rc)
	must.NoError(t, err)
	must.Eq(t, rc.Lazy != nil, s.Pages() != nil)
	must.NoError(t, s.Wake(ctx, nil))
	must.Eq(t, want, ask(s))
	if s.Pages() != nil {
		must.NoError(t, s.Pages().Wait(ctx))
	}
	// What was restored can be copied as what was made.
	ahead, err = s.CopyAhead(ctx, e, dir+"-again", 1<<20)
	must.NoError(t, err)
	must.NotNil(t, ahead)
	must.NoError(t, ahead.Remove())
	must.Eq(t, want, ask(s))
}

// sameImages compares the memory in two folders of images, page by page, but of those that are named.
func sameImages(t *testing.T, a, b string, but ...string) {
	t.Helper()
	maps, err := filepath.Glob(filepath.Join(a, "pagemap-*.img"))
	must.NoError(t, err)
	others, err := filepath.Glob(filepath.Join(b, "pagemap-*.img"))
	must.NoError(t, err)
	must.Len(t, len(maps), others)
	compared := 0
	for _, path := range maps {
		if slices.Contains(but, filepath.Base(path)) {
			continue
		}
		want, got := readMemory(t, a, filepath.Base(path)), readMemory(t, b, filepath.Base(path))
		must.Eq(t, want.flags, got.flags, must.Sprint(filepath.Base(path)))
		told := rseqOf(t, a, filepath.Base(path))
		for at, page := range want.pages {
			compared++
			other := got.pages[at]
			if told>>12 == at>>12 { // a dump has the process run, and the kernel then tells it its processor
				page, other = bytes.Clone(page), bytes.Clone(other)
				clear(page[told-at:][:rseqSize])
				clear(other[told-at:][:rseqSize])
			}
			if !bytes.Equal(page, other) {
				t.Errorf("%s: the page at %#x differs", filepath.Base(path), at)
			}
		}
	}
	t.Log("pages compared: ", compared)
	must.Positive(t, compared)
}

// rseqSize is that of struct rseq.
const rseqSize = 32

// rseqOf returns where the kernel tells the main thread of a process about its processor; 0: nowhere.
func rseqOf(t *testing.T, dir, pagemap string) uint64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "core-"+strings.TrimPrefix(pagemap, "pagemap-")))
	must.NoError(t, err)
	var e criu_core.CoreEntry
	must.NoError(t, proto.Unmarshal(b[12:], &e))
	return e.GetThreadCore().GetRseqEntry().GetRseqAbiPointer()
}

// dumped is the memory of a process by address.
type dumped struct {
	flags map[uint64]uint64
	pages map[uint64][]byte
}

func readMemory(t *testing.T, dir, name string) dumped {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	must.NoError(t, err)
	next := func() map[protowire.Number]uint64 {
		n := binary.LittleEndian.Uint32(b)
		body := b[4 : 4+n]
		b = b[4+n:]
		f := map[protowire.Number]uint64{}
		for len(body) > 0 {
			num, typ, n := protowire.ConsumeTag(body)
			must.Positive(t, n)
			must.Eq(t, protowire.VarintType, typ)
			v, k := protowire.ConsumeVarint(body[n:])
			must.Positive(t, k)
			f[num], body = v, body[n+k:]
		}
		return f
	}
	b = b[8:]
	pages, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("pages-%d.img", next()[1])))
	must.NoError(t, err)
	d := dumped{flags: map[uint64]uint64{}, pages: map[uint64][]byte{}}
	for len(b) > 0 {
		e := next()
		must.Eq(t, 0, e[4]&1, must.Sprint("pages of a parent"))
		for at := e[1]; at < e[1]+e[5]*4096; at += 4096 {
			if d.flags[at] = e[4]; e[4]&4 != 0 {
				d.pages[at], pages = pages[:4096], pages[4096:]
			}
		}
	}
	must.Len(t, 0, pages)
	return d
}

// copierEnv makes the test binary copy the memory of a sandbox ahead again and again, until it is killed.
const copierEnv = "SANDBOX_TEST_COPIER"

type copierOrder struct {
	Ref              sandbox.Ref
	PIDs             []int
	Group, Dir, CRIU string
	StandStill       bool // once the sandbox does
}

func copyAndHang() error {
	var o copierOrder
	if err := json.Unmarshal([]byte(os.Getenv(copierEnv)), &o); err != nil {
		return err
	}
	ctx := context.Background()
	e, err := checkpoint.Open(ctx, o.CRIU)
	if err != nil {
		return err
	}
	cg, err := cgroup.Detect("/sys/fs/cgroup", o.Group)
	if err != nil {
		return err
	}
	s, err := sandbox.Open(o.Ref, cg)
	if err != nil {
		return err
	}
	freeze := s.Freeze
	if o.StandStill {
		freeze = func(ctx context.Context) error {
			if err := s.Freeze(ctx); err != nil {
				return err
			}
			fmt.Println("now")
			select {}
		}
	} else {
		fmt.Println("now")
	}
	for {
		a, err := e.CopyAhead(ctx, checkpoint.AheadOptions{PIDs: o.PIDs, Dir: o.Dir, Freeze: freeze, Thaw: s.Thaw, Least: 1 << 20})
		if err == nil && a == nil {
			err = errors.New("nothing was copied")
		}
		if err = errors.Join(err, a.Remove()); err != nil {
			return err
		}
	}
}

// Whoever copies ahead may be killed at any time: the sandbox runs on, at the latest when the next one thaws it, and nothing holds it.
func TestCopyAhead_mayBeKilled(t *testing.T) {
	aheadEngine(t)
	h := sandboxtest.NewHost(t)
	c := h.Config()
	c.NodeOwned = !sandbox.CanDump()
	s, err := sandbox.Create(t.Context(), c)
	must.NoError(t, err)
	defer func() { sandboxtest.Release(t, s) }()
	ask := startAsked(t, s, churns)
	want := ask(s)
	exe, err := os.Executable()
	must.NoError(t, err)
	group, err := h.Cgroups.Open(string(c.ID))
	must.NoError(t, err)
	for _, still := range []bool{false, true} {
		pids, err := group.Processes()
		must.NoError(t, err)
		dir := filepath.Join(filepath.Dir(h.StateDir), fmt.Sprint("k", still))
		order, err := json.Marshal(copierOrder{Ref: s.Ref(), PIDs: pids, Group: h.Parent, Dir: dir, CRIU: sandboxtest.CRIU(t), StandStill: still})
		must.NoError(t, err)
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), copierEnv+"="+string(order))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must.NoError(t, err)
		must.NoError(t, cmd.Start())
		line := make([]byte, 4)
		_, rerr := io.ReadFull(out, line)
		if !still {
			time.Sleep(time.Duration(rand.IntN(1000)) * time.Millisecond) // any moment will do
		}
		must.NoError(t, cmd.Process.Kill())
		must.Error(t, cmd.Wait())
		must.NoError(t, rerr)
		must.Eq(t, "now\n", string(line))
		must.True(t, !still || stands(t, s))
		must.NoError(t, os.RemoveAll(dir))
		must.NoError(t, s.Thaw(t.Context())) // as the next daemon does with what its record calls running
		must.Eq(t, want, ask(s))
		status, err := os.ReadFile("/proc/" + strconv.Itoa(s.Ref().PID) + "/status")
		must.NoError(t, err)
		must.StrContains(t, string(status), "TracerPid:\t0\n")
	}
}

// stands reports whether a sandbox's group is frozen.
func stands(t *testing.T, s *sandbox.Sandbox) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(s.Ref().PID) + "/cgroup")
	must.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		if path, ok := strings.CutPrefix(rest, "freezer:"); ok {
			if b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/freezer", path, "freezer.state")); err == nil && strings.HasPrefix(string(b), "FR") {
				return true
			}
		}
		if path, ok := strings.CutPrefix(rest, ":"); ok {
			if b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "cgroup.freeze")); err == nil && strings.TrimSpace(string(b)) == "1" {
				return true
			}
		}
	}
	return false
}
