package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

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

// Usage reads the counters of Usage once. Who reads them again and again has a Meter.
func (g *Group) Usage() (Usage, error) {
	m, err := g.Meter()
	if err != nil {
		return Usage{}, err
	}
	u, err := m.Usage()
	return u, errors.Join(err, m.Close())
}

// A Meter reads a group's Usage from files that stay open: to find and open a control file costs the kernel five times as much as to
// read it. It does not keep the group from being removed. It is not safe for concurrent use.
type Meter struct {
	group   string
	files   []meterFile
	charged int // descriptor of one of files; -1: the kernel has none
}

type meterFile struct {
	fd   int
	path string
	add  func(*Usage, []byte)
}

// A counter is a file of Usage, and what is read from it.
type counter struct {
	controller string // whose hierarchy of v1 has it
	file       string
	add        func(*Usage, []byte)
}

// What of memory is cache that can be dropped is in a file of its own, which is read after that of all.
var (
	v1Counters = []counter{
		{"cpuacct", "cpuacct.usage", func(u *Usage, b []byte) { u.CPUNanos = number(b) }},
		{"memory", "memory.usage_in_bytes", func(u *Usage, b []byte) { u.MemoryBytes = number(b) }},
		{"memory", "memory.stat", func(u *Usage, b []byte) {
			u.MemoryCache = field(b, "total_cache")
			u.MemoryBytes -= min(u.MemoryBytes, field(b, "total_inactive_file"))
		}},
		{"pids", "pids.current", func(u *Usage, b []byte) { u.PIDs = number(b) }},
		{"blkio", "blkio.throttle.io_service_bytes", func(u *Usage, b []byte) { u.DiskRead, u.DiskWritten = parseV1IO(b) }},
	}
	v2Counters = []counter{
		{"cpu", "cpu.stat", func(u *Usage, b []byte) { u.CPUNanos = field(b, "usage_usec") * 1000 }},
		{"memory", "memory.current", func(u *Usage, b []byte) { u.MemoryBytes = number(b) }},
		{"memory", "memory.stat", func(u *Usage, b []byte) {
			u.MemoryCache = field(b, "file")
			u.MemoryBytes -= min(u.MemoryBytes, field(b, "inactive_file"))
		}},
		{"pids", "pids.current", func(u *Usage, b []byte) { u.PIDs = number(b) }},
		{"io", "io.stat", func(u *Usage, b []byte) { u.DiskRead, u.DiskWritten = parseV2IO(b) }},
	}
)

// Meter opens the files of Usage, five at most. The caller closes it.
func (g *Group) Meter() (*Meter, error) {
	m := &Meter{group: g.name, charged: -1}
	counters := v2Counters
	if g.tree.h.version() == 1 {
		counters = v1Counters
	}
	m.files = make([]meterFile, 0, len(counters))
	for _, c := range counters {
		dir, err := g.tree.h.dir(c.controller, g.rel)
		if err != nil {
			continue // a kernel without the controller
		}
		f := meterFile{path: dir + "/" + c.file, add: c.add}
		f.fd, err = openFile(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			if _, serr := os.Stat(dir); !errors.Is(serr, fs.ErrNotExist) {
				continue // a kernel without the file
			}
			err = ErrNotExist
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("usage of control group %s: %s: %w", g.name, f.path, err), m.Close())
		}
		m.files = append(m.files, f)
		if c.file == chargedFile(g.tree.h.version()) {
			m.charged = f.fd
		}
	}
	return m, nil
}

// reading is what a reading needs, taken again by the next one.
type reading struct {
	usage Usage
	buf   [8192]byte // memory.stat, the longest, has about 2000
}

var readings = sync.Pool{New: func() any { return new(reading) }}

// Usage reads the counters now. Those of a group that is gone are ErrNotExist.
func (m *Meter) Usage() (Usage, error) {
	r := readings.Get().(*reading)
	defer readings.Put(r)
	r.usage = Usage{}
	for _, f := range m.files {
		n, err := pread(f.fd, r.buf[:])
		if errors.Is(err, unix.ENODEV) {
			err = ErrNotExist
		}
		if err != nil {
			return Usage{}, fmt.Errorf("usage of control group %s: read %s: %w", m.group, f.path, err)
		}
		f.add(&r.usage, r.buf[:n])
	}
	return r.usage, nil
}

// Close closes the files.
func (m *Meter) Close() error {
	var errs []error
	for _, f := range m.files {
		if err := unix.Close(f.fd); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", f.path, err))
		}
	}
	m.files = nil
	return errors.Join(errs...)
}

// pread reads a control file from its beginning. The kernel writes one as a whole into a buffer that has room for it.
func pread(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
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

// number returns what a file of one number holds, 0 where it holds none.
func number(b []byte) uint64 {
	n, err := parseUint(b)
	if err != nil {
		return 0
	}
	return n
}

// field returns the value of a line "key value", 0 where there is none.
func field(b []byte, key string) uint64 {
	for len(b) > 0 {
		at := bytes.Index(b, []byte(key))
		if at < 0 {
			return 0
		}
		begins := at == 0 || b[at-1] == '\n'
		b = b[at+len(key):]
		if begins && len(b) > 0 && b[0] == ' ' {
			value, _, _ := bytes.Cut(b[1:], []byte("\n"))
			return number(value)
		}
	}
	return 0
}

// parseV1IO adds up lines "8:0 Read 4096" and "8:0 Write 4096"; the other operations are part of none or of both.
func parseV1IO(b []byte) (in, out uint64) {
	for line := range bytes.Lines(b) {
		_, rest, _ := bytes.Cut(line, []byte(" "))
		operation, value, _ := bytes.Cut(rest, []byte(" "))
		switch string(operation) {
		case "Read":
			in += number(value)
		case "Write":
			out += number(value)
		}
	}
	return in, out
}

// parseV2IO adds up lines "8:0 rbytes=4096 wbytes=0 rios=1 …".
func parseV2IO(b []byte) (in, out uint64) {
	for pair := range bytes.FieldsSeq(b) {
		key, value, _ := bytes.Cut(pair, []byte("="))
		switch string(key) {
		case "rbytes":
			in += number(value)
		case "wbytes":
			out += number(value)
		}
	}
	return in, out
}
