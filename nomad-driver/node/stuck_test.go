package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// freeze stops all writing to the file system of a directory, as FIFREEZE does for a snapshot of a volume, and returns what ends that. A writer waits in the
// kernel meanwhile, and no signal ends it.
func freeze(t *testing.T, dir string) (thaw func()) {
	t.Helper()
	const fifreeze, fithaw = 0xc0045877, 0xc0045878 // linux/fs.h
	f, err := os.Open(dir)
	must.NoError(t, err)
	must.NoError(t, unix.IoctlSetInt(int(f.Fd()), fifreeze, 0))
	frozen := true
	thaw = func() {
		if frozen {
			frozen = false
			must.NoError(t, errors.Join(unix.IoctlSetInt(int(f.Fd()), fithaw, 0), f.Close())) // an open file would keep the mount
		}
	}
	t.Cleanup(thaw)
	return thaw
}

// loopsBelow counts the loop devices whose images are below a directory.
func loopsBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must.NoError(t, err)
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir) {
			n++
		}
	}
	return n
}

// TestReal_aProcessStuckInTheKernel freezes the file system of a sandbox under a process that writes to it.
func TestReal_aProcessStuckInTheKernel(t *testing.T) {
	sandboxtest.RequireRoot(t)
	if err := (&disk.LoopImage{}).Probe(""); err != nil {
		t.Skip(err)
	}
	config := filepath.Join(shortDir(t), "node.hcl")
	must.NoError(t, os.WriteFile(config, []byte("disk_limiter = \"image\"\n"), 0o600))
	d := startDaemon(t, "-config", config)
	limited := func(r *nodeapi.CreateRequest) { r.Limits.DiskBytes = 64 << 20 }
	sb := d.create(limited)
	layer := d.dir + "/s/sandboxes/" + string(sb.ID)
	s, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "cd /home/user; exec dd if=/dev/zero of=file bs=4k count=1000000000 conv=notrunc oflag=append"}}})
	must.NoError(t, err)
	_ = s.Close()
	other := d.create(limited)
	thaw := freeze(t, layer)
	t.Cleanup(thaw) // before the daemon's end, which waits for it
	var pid int
	waitUntil(t, "a process in an uninterruptible sleep", func() bool {
		pid = d.sleeping(sb, "dd")
		return pid != 0
	})

	stuck := func(err error) {
		t.Helper()
		must.Eq(t, 503, api.StatusOf(err))
		must.StrContains(t, err.Error(), "the kernel does not let go of process "+strconv.Itoa(pid)+` ("dd")`)
	}
	stuck(d.client.Delete(t.Context(), sb.ID))
	// It says so again, and so does a stop; nothing of it is taken away or given to others under it.
	_, err = d.client.Stop(t.Context(), sb.ID, nodeapi.StopRequest{})
	stuck(err)
	kept := func() {
		t.Helper()
		now, err := d.client.Get(t.Context(), sb.ID)
		must.NoError(t, err)
		must.Eq(t, nodeapi.StateStopping, now.State)
		must.Eq(t, pid, d.sleeping(sb, "dd"))
		b, err := os.ReadFile("/proc/self/mountinfo")
		must.NoError(t, err)
		must.StrContains(t, string(b), layer+" ")
		out, code := d.exec(other, "bash", "-c", "echo x > /home/user/x && cat /home/user/x")
		must.Eq(t, "x\n", out)
		must.Eq(t, 0, code)
		fresh := d.create()
		must.False(t, slices.Contains([]uint32{d.idBase(sb), d.idBase(other)}, d.idBase(fresh)), must.Sprint("a range of ids is given twice"))
		must.NoError(t, d.client.Delete(t.Context(), fresh.ID))
	}
	kept()
	d.kill()
	d.start() // which goes on with the stop
	kept()
	stuck(d.client.Delete(t.Context(), sb.ID))

	thaw()
	waitUntil(t, "the end of it", func() bool { _, err := d.client.Get(t.Context(), sb.ID); return api.IsNotFound(err) })
	must.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
	must.NoError(t, d.client.Delete(t.Context(), other.ID))
	d.noGroups()
	d.noLeftovers()
	waitUntil(t, "the loop devices", func() bool { return loopsBelow(t, d.dir) == 0 })
}

// sleeping returns the pid of a program of a sandbox that waits in the kernel; 0: none does.
func (d *daemon) sleeping(sb nodeapi.Sandbox, name string) int {
	d.t.Helper()
	base := d.idBase(sb)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must.NoError(d.t, err)
	for _, path := range stats {
		var st unix.Stat_t
		b, err := os.ReadFile(path)
		if err != nil || unix.Stat(filepath.Dir(path), &st) != nil || st.Uid < base || st.Uid >= base+sandbox.IDRange {
			continue
		}
		if pid, rest, _ := strings.Cut(string(b), " "); strings.HasPrefix(rest, "("+name+") D ") {
			n, err := strconv.Atoi(pid)
			must.NoError(d.t, err)
			return n
		}
	}
	return 0
}

// idBase returns the first id of a sandbox, who owns its layer.
func (d *daemon) idBase(sb nodeapi.Sandbox) uint32 {
	d.t.Helper()
	var st unix.Stat_t
	must.NoError(d.t, unix.Stat(d.dir+"/s/sandboxes/"+string(sb.ID)+"/upper", &st))
	return st.Uid
}
