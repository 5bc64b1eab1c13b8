package cgroup

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
)

// IO are the bytes that a group has moved from and to block devices. On v1 the kernel counts a write only where it goes to
// the device at once (O_DIRECT, O_SYNC); what it writes back later from the page cache is nobody's.
type IO struct {
	Read, Written uint64
	Measured      bool // false where the kernel has no counter
}

// IO reads the counters of block devices. They cost a look at two files at most, so they are apart from Stats.
func (g *Group) IO() (IO, error) { return g.m.h.io(g.rel) }

func (h *v1) io(group string) (IO, error) {
	dir, err := h.dir("blkio", group)
	if err != nil {
		return IO{}, nil //nolint:nilerr // not mounted: not measured
	}
	return readIO(dir, "blkio.throttle.io_service_bytes", parseV1IO)
}

func (h *v2) io(group string) (IO, error) {
	return readIO(filepath.Join(h.root, group), "io.stat", parseV2IO)
}

func readIO(dir, file string, parse func([]byte) IO) (IO, error) {
	b, err := read(dir, file)
	switch {
	case errors.Is(err, ErrNotExist):
		return IO{}, err
	case errors.Is(err, os.ErrNotExist): // a kernel without the controller
		return IO{}, nil
	case err != nil:
		return IO{}, err
	}
	return parse(b), nil
}

// parseV1IO adds up lines "8:0 Read 4096" and "8:0 Write 4096"; the other operations are part of none or of both.
func parseV1IO(b []byte) IO {
	io := IO{Measured: true}
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
			io.Read += n
		case "Write":
			io.Written += n
		}
	}
	return io
}

// parseV2IO adds up lines "8:0 rbytes=4096 wbytes=0 rios=1 …".
func parseV2IO(b []byte) IO {
	io := IO{Measured: true}
	for field := range bytes.FieldsSeq(b) {
		key, value, ok := bytes.Cut(field, []byte("="))
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			continue
		}
		switch string(key) {
		case "rbytes":
			io.Read += n
		case "wbytes":
			io.Written += n
		}
	}
	return io
}
