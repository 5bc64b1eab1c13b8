package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
)

// Usage is what a sandbox uses, from the kernel's own counters. Those of the processor, of bytes moved and of the network only
// grow, from its start on.
type Usage struct {
	cgroup.Usage
	NetIn, NetOut uint64 // bytes over all its interfaces but loopback
	// Disk is what a limiter counts of its writable layer; nil where none does.
	Disk *disk.Usage
}

// Usage reads it. It never waits for the sandbox: it reads a few files of the kernel.
func (s *Sandbox) Usage() (Usage, error) {
	group, err := s.group.Usage()
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Usage: group}
	if u.NetIn, u.NetOut, err = readNetwork(s.ref.PID); err != nil {
		return Usage{}, fmt.Errorf("network usage of sandbox %s: %w", s.ref.ID, err)
	}
	if u.Disk, err = s.diskCounted(); err != nil {
		return Usage{}, fmt.Errorf("disk usage of sandbox %s: %w", s.ref.ID, err)
	}
	// The pid was its own while it was read where its process has not ended since.
	if s.gone() {
		return Usage{}, fmt.Errorf("usage of sandbox %s: it has ended", s.ref.ID)
	}
	return u, nil
}

// diskCounted returns what the limiter counts of the writable layer; nil where none does.
func (s *Sandbox) diskCounted() (*disk.Usage, error) {
	if s.disk == nil {
		return nil, nil
	}
	// A mount of an earlier daemon in another mount namespace bounds the sandbox all the same, but cannot be asked.
	u, err := s.disk.Usage(s.at.state)
	if errors.Is(err, disk.ErrNotPrepared) || errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &u, nil
}

// gone reports whether PID 1 has ended.
func (s *Sandbox) gone() bool {
	if s.pidfd == nil {
		return true
	}
	conn, err := s.pidfd.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = conn.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, perr := unix.Poll(p, 0)
		ended = perr == nil && n == 1
	})
	return ended || err != nil
}

// DiskUsed returns what its writable layer holds, where no limiter counts it, within the budget; exact is false
// where that did not reach.
func (s *Sandbox) DiskUsed(b disk.Budget) (u disk.Usage, exact bool, err error) {
	return disk.Walk(s.at.upper, b)
}

// maxNetworkFile bounds what is read of /proc/PID/net/dev: a sandbox may make interfaces, and a line is about 120 bytes.
const maxNetworkFile = 64 << 10

// readNetwork adds up the interfaces of the network namespace that a process is in.
func readNetwork(pid int) (in, out uint64, err error) {
	// Without what makes a file fit for polling, which costs more than reading it.
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/net/dev", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	f := os.NewFile(uintptr(fd), "net/dev")
	b, err := io.ReadAll(io.LimitReader(f, maxNetworkFile))
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, 0, err
	}
	in, out = parseNetwork(b)
	return in, out, nil
}

// parseNetwork reads lines "  eth0: bytes packets errs drop fifo frame compressed multicast bytes packets …" after two of
// heading. The first eight columns are what came in.
func parseNetwork(b []byte) (in, out uint64) {
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok || string(bytes.TrimSpace(name)) == "lo" {
			continue
		}
		f := bytes.Fields(rest)
		if len(f) < 16 {
			continue
		}
		r, rerr := strconv.ParseUint(string(f[0]), 10, 64)
		w, werr := strconv.ParseUint(string(f[8]), 10, 64)
		if rerr == nil && werr == nil {
			in, out = in+r, out+w
		}
	}
	return in, out
}
