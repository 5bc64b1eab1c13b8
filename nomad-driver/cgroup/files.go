package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// write writes a value into a control file, which must exist.
func write(dir, file, value string) error {
	path := filepath.Join(dir, file)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if _, serr := os.Stat(dir); serr == nil {
				return fmt.Errorf("%s: %w", path, ErrUnsupported)
			}
			return fmt.Errorf("%s: %w", dir, ErrNotExist)
		}
		return err
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}

func writeInt(dir, file string, v int64) error { return write(dir, file, strconv.FormatInt(v, 10)) }

// read returns a control file's content. That of a group that is gone is ErrNotExist.
func read(dir, file string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", dir, ErrNotExist)
		}
	}
	return b, err
}

// readUint returns a file that holds one number; "max" is the largest.
func readUint(dir, file string) (uint64, error) {
	b, err := read(dir, file)
	if err != nil {
		return 0, err
	}
	return parseUint(b)
}

func parseUint(b []byte) (uint64, error) {
	s := string(bytes.TrimSpace(b))
	if s == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// readTable returns a file of lines "key value".
func readTable(dir, file string) (map[string]uint64, error) {
	b, err := read(dir, file)
	if err != nil {
		return nil, err
	}
	t := make(map[string]uint64)
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok {
			continue
		}
		if v, err := parseUint(value); err == nil {
			t[string(key)] = v
		}
	}
	return t, nil
}

func readPIDs(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range bytes.Fields(b) {
		pid, err := strconv.Atoi(string(f))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		// A process of a pid namespace that we do not see has the number 0: it cannot be signalled and is not ours.
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
