package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk returns the whole disk on which path is, as IOLimits.Device wants it. A file system without a disk of its own
// (tmpfs, overlay, some btrfs) is an ErrUnsupported.
func Disk(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("disk of %s: %w", path, err)
	}
	if unix.Major(st.Dev) == 0 {
		return "", fmt.Errorf("disk of %s: its file system has no block device: %w", path, ErrUnsupported)
	}
	name := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + name)
	if err != nil {
		return "", fmt.Errorf("disk of %s: %w: %w", path, ErrUnsupported, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); errors.Is(err, os.ErrNotExist) {
		return name, nil
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "dev"))
	if err != nil {
		return "", fmt.Errorf("disk of %s: %w", path, err)
	}
	return string(bytes.TrimSpace(b)), nil
}
