package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Usage is the part of Stats that is worth a look every few seconds at every group: it takes half as many files. What the
// kernel does not count is 0.
type Usage struct {
	CPUNanos    uint64
	MemoryBytes uint64 // as in Stats
	MemoryCache uint64 // as in Stats
	PIDs        uint64
	// Bytes from and to block devices. On v1 the kernel counts a write only where it goes to the device at once (O_DIRECT,
	// O_SYNC); what it writes back later from the page cache is nobody's.
	DiskRead, DiskWritten uint64
}

// Usage reads the counters of Usage.
func (g *Group) Usage() (Usage, error) {
	u, err := g.m.h.usage(g.rel)
	if err != nil {
		return Usage{}, fmt.Errorf("usage of control group %s: %w", g.name, err)
	}
	return u, nil
}

func (h *v1) usage(group string) (Usage, error) {
	var u Usage
	r := scanner{}
	if dir, err := h.dir("cpuacct", group); err == nil {
		u.CPUNanos = r.number(dir, "cpuacct.usage")
	}
	if dir, err := h.dir("memory", group); err == nil {
		u.MemoryBytes = r.number(dir, "memory.usage_in_bytes")
		stat := r.file(dir, "memory.stat")
		u.MemoryCache = field(stat, "total_cache")
		u.MemoryBytes -= min(u.MemoryBytes, field(stat, "total_inactive_file"))
	}
	if dir, err := h.dir("pids", group); err == nil {
		u.PIDs = r.number(dir, "pids.current")
	}
	if dir, err := h.dir("blkio", group); err == nil {
		u.DiskRead, u.DiskWritten = parseV1IO(r.file(dir, "blkio.throttle.io_service_bytes"))
	}
	return u, r.err
}

func (h *v2) usage(group string) (Usage, error) {
	var u Usage
	r := scanner{}
	dir := filepath.Join(h.root, group)
	u.CPUNanos = field(r.file(dir, "cpu.stat"), "usage_usec") * 1000
	u.MemoryBytes = r.number(dir, "memory.current")
	stat := r.file(dir, "memory.stat")
	u.MemoryCache = field(stat, "file")
	u.MemoryBytes -= min(u.MemoryBytes, field(stat, "inactive_file"))
	u.PIDs = r.number(dir, "pids.current")
	u.DiskRead, u.DiskWritten = parseV2IO(r.file(dir, "io.stat"))
	return u, r.err
}

// scanner reads control files with as few system calls as there can be, one after the other into one buffer. A file that the
// kernel does not have is empty; the first error about a group that is gone is kept.
type scanner struct {
	buf [8192]byte // memory.stat, the longest, has about 2000
	err error
}

func (r *scanner) file(dir, name string) []byte {
	if r.err != nil {
		return nil
	}
	fd, err := openFile(dir + "/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			r.err = fmt.Errorf("%s: %w", dir, ErrNotExist)
		}
		return nil
	}
	if err != nil {
		r.err = fmt.Errorf("open %s/%s: %w", dir, name, err)
		return nil
	}
	n := 0
	for n < len(r.buf) {
		var k int
		k, err = unix.Read(fd, r.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || k <= 0 {
			break
		}
		n += k
	}
	if errors.Is(err, unix.ENODEV) {
		err = ErrNotExist
	}
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		r.err = fmt.Errorf("read %s/%s: %w", dir, name, err)
		return nil
	}
	return r.buf[:n]
}

// openFile is os.Open without what makes a file fit for polling, which for a control file costs more than reading it.
func openFile(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (r *scanner) number(dir, name string) uint64 {
	n, err := parseUint(r.file(dir, name))
	if err != nil {
		return 0 // an empty file, of a kernel without it
	}
	return n
}

// field returns the value of a line "key value", 0 where there is none.
func field(b []byte, key string) uint64 {
	for line := range bytes.Lines(b) {
		if len(line) > len(key) && line[len(key)] == ' ' && string(line[:len(key)]) == key {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(line[len(key):])), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// parseV1IO adds up lines "8:0 Read 4096" and "8:0 Write 4096"; the other operations are part of none or of both.
func parseV1IO(b []byte) (in, out uint64) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, err := strconv.ParseUint(string(f[2]), 10, 64)
		if err != nil {
			continue
		}
		switch string(f[1]) {
		case "Read":
			in += n
		case "Write":
			out += n
		}
	}
	return in, out
}

// parseV2IO adds up lines "8:0 rbytes=4096 wbytes=0 rios=1 …".
func parseV2IO(b []byte) (in, out uint64) {
	for pair := range bytes.FieldsSeq(b) {
		key, value, ok := bytes.Cut(pair, []byte("="))
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			continue
		}
		switch string(key) {
		case "rbytes":
			in += n
		case "wbytes":
			out += n
		}
	}
	return in, out
}
