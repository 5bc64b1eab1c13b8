package sandbox

import (
	"bytes"
	"errors"
	"fmt"
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
	var u Usage
	var err error
	if u.Usage, u.NetIn, u.NetOut, err = s.meter.read(s); err != nil {
		return Usage{}, err
	}
	if u.Disk, err = s.diskCounted(); err != nil {
		return Usage{}, fmt.Errorf("disk usage of sandbox %s: %w", s.ref.ID, err)
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

// parseNetwork reads lines "  eth0: bytes packets errs drop fifo frame compressed multicast bytes packets …" after two of
// heading. The first eight columns are what came in.
func parseNetwork(b []byte) (in, out uint64) {
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok || string(bytes.TrimSpace(name)) == "lo" {
			continue
		}
		r, rerr := column(rest, 0)
		w, werr := column(rest, 8)
		if rerr == nil && werr == nil {
			in, out = in+r, out+w
		}
	}
	return in, out
}

// column returns the i-th number of a line.
func column(line []byte, i int) (uint64, error) {
	for f := range bytes.FieldsSeq(line) {
		if i == 0 {
			return strconv.ParseUint(string(f), 10, 64)
		}
		i--
	}
	return 0, errors.New("the line is short")
}
