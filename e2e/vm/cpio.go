package vm

import (
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"
)

// archive writes an initramfs: cpio in the "newc" format that the kernel unpacks (kernel document
// driver-api/early-userspace/buffer-format).
type archive struct {
	w    io.Writer
	off  int64
	ino  int
	dirs map[string]bool
}

func newArchive(w io.Writer) *archive { return &archive{w: w, dirs: map[string]bool{}} }

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// entry writes one header and its data. rmaj and rmin count for devices only.
func (a *archive) entry(name string, mode uint32, rmaj, rmin uint32, size int64, data io.Reader) error {
	a.ino++
	hdr := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, 1, 0, size, 0, 0, rmaj, rmin, len(name)+1, 0)
	if err := a.write(strings.NewReader(hdr+name+"\x00"), int64(len(hdr)+len(name)+1)); err != nil {
		return err
	}
	if err := a.pad(); err != nil {
		return err
	}
	if size > 0 {
		if err := a.write(data, size); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	return a.pad()
}

func (a *archive) write(r io.Reader, n int64) error {
	m, err := io.CopyN(a.w, r, n)
	a.off += m
	return err
}

func (a *archive) pad() error {
	if n := a.off % 4; n != 0 {
		return a.write(strings.NewReader("\x00\x00\x00"), 4-n)
	}
	return nil
}

// parents writes the directories above name that are not there yet.
func (a *archive) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." || dir == "/" || a.dirs[dir] {
		return nil
	}
	if err := a.parents(dir); err != nil {
		return err
	}
	a.dirs[dir] = true
	return a.entry(dir, modeDir|0o755, 0, 0, 0, nil)
}

// add writes the host's file src as name, with its permission bits; a folder with all that it holds.
func (a *archive) add(name, src string) error {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if err := a.parents(name); err != nil {
		return err
	}
	fi, err := os.Stat(src)
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return a.addDir(name, src)
	}
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	return a.entry(name, modeFile|uint32(fi.Mode().Perm()), 0, 0, fi.Size(), f)
}

func (a *archive) addDir(name, src string) error {
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	a.dirs[name] = true
	if err := a.entry(name, modeDir|0o755, 0, 0, 0, nil); err != nil {
		return err
	}
	for _, e := range entries {
		child, from := path.Join(name, e.Name()), path.Join(src, e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			target, err := os.Readlink(from)
			if err != nil {
				return err
			}
			err = a.entry(child, modeLink|0o777, 0, 0, int64(len(target)), strings.NewReader(target))
			if err != nil {
				return err
			}
			continue
		}
		if err := a.add(child, from); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) addText(name, text string, perm uint32) error {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if err := a.parents(name); err != nil {
		return err
	}
	return a.entry(name, modeFile|perm, 0, 0, int64(len(text)), strings.NewReader(text))
}

// addFiles writes guest path → host path, in a fixed order.
func (a *archive) addFiles(files map[string]string) error {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := a.add(name, files[name]); err != nil {
			return err
		}
	}
	return nil
}

// close writes the trailer.
func (a *archive) close() error { return a.entry("TRAILER!!!", 0, 0, 0, 0, nil) }
