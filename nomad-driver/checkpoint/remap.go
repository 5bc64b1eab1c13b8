package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	remap "github.com/checkpoint-restore/go-criu/v7/crit/images/remap-file-path"
)

// Magics of the images of files, and limits of their sizes in bytes.
const (
	filesMagic = 0x56303138
	remapMagic = 0x59133954
	maxFiles   = 256 << 20
)

// remapped is what CRIU calls a name of its own for an open file.
var remapped = regexp.MustCompile(`^link_remap\.[0-9]+$`)

// Remaps returns the names that CRIU has given, below the root of the sandbox, to open files that have lost the name by which they were opened and have
// another one: a restore opens them by it. CRIU takes the names away again at the end of a dump that leaves the processes alive. Names in file systems that are
// part of the images are among them, and may be passed over.
func Remaps(images string) ([]string, error) {
	path := filepath.Join(images, "remap-fpath.img")
	b, err := readImage(path, remapMagic, maxFiles)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	linked := map[uint32]bool{}
	err = eachEntry(b, func(entry []byte) error {
		var e remap.RemapFilePathEntry
		if err := proto.Unmarshal(entry, &e); err != nil {
			return err
		}
		if e.GetRemapType() == remap.RemapType_LINKED {
			linked[e.GetRemapId()] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", filepath.Base(path), err)
	}
	if len(linked) == 0 {
		return nil, nil
	}
	path = filepath.Join(images, "files.img")
	if b, err = readImage(path, filesMagic, maxFiles); err != nil {
		return nil, err
	}
	var names []string
	err = eachEntry(b, func(entry []byte) error {
		var e fdinfo.FileEntry
		if err := proto.Unmarshal(entry, &e); err != nil {
			return err
		}
		if e.GetReg() == nil || !linked[e.GetId()] {
			return nil
		}
		name := strings.TrimPrefix(e.GetReg().GetName(), "/")
		if !filepath.IsLocal(name) || name != filepath.Clean(name) {
			return fmt.Errorf("file %d has the name %.100q, which is no path below a root", e.GetId(), name)
		}
		if remapped.MatchString(filepath.Base(name)) { // and not something of the sandbox's that is there anyway
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", filepath.Base(path), err)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// eachEntry calls f with each message of an image.
func eachEntry(b []byte, f func([]byte) error) error {
	for b = b[8:]; len(b) > 0; {
		if len(b) < 4 || uint64(len(b)-4) < uint64(binary.LittleEndian.Uint32(b)) {
			return errors.New("it is cut")
		}
		size := binary.LittleEndian.Uint32(b)
		if err := f(b[4 : 4+size]); err != nil {
			return err
		}
		b = b[4+size:]
	}
	return nil
}

// dropRemaps takes away the names that a CRIU which was killed has left in a sandbox: who uses the sandbox would see them, and the next CRIU would not get past them. Such a name
// is in the folder of one that is gone, and is one of a file that some process has open, mapped, or runs.
func dropRemaps(root int, pids []int) error {
	inside, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", root))
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer inside.Close()
	looked := map[string]bool{}
	for _, pid := range pids {
		held, err := lostNames(pid)
		if err != nil && !gone(err) {
			return fmt.Errorf("files of process %d: %w", pid, err)
		}
		for link, name := range held {
			if err := dropRemapsOf(inside, link, filepath.Dir(name), looked); err != nil {
				return fmt.Errorf("files of process %d: %w", pid, err)
			}
		}
	}
	return nil
}

const lost = " (deleted)"

// lostNames returns what a process holds whose name is gone: the names, by the link in /proc that leads to the file all the same.
func lostNames(pid int) (map[string]string, error) {
	proc := fmt.Sprintf("/proc/%d/", pid)
	entries, err := os.ReadDir(proc + "fd")
	if err != nil {
		return nil, err
	}
	links := []string{proc + "exe"}
	for _, e := range entries {
		links = append(links, proc+"fd/"+e.Name())
	}
	held := map[string]string{}
	for _, link := range links {
		target, err := os.Readlink(link)
		if name, ok := strings.CutSuffix(target, lost); err == nil && ok && strings.HasPrefix(name, "/") {
			held[link] = name
		}
	}
	maps, err := os.ReadFile(proc + "maps")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(maps) {
		text, ok := strings.CutSuffix(strings.TrimSuffix(string(line), "\n"), lost)
		f := strings.Fields(text)
		if at := strings.IndexByte(text, '/'); ok && at > 0 && len(f) > 5 {
			held[proc+"map_files/"+f[0]] = text[at:]
		}
	}
	return held, nil
}

// dropRemapsOf looks at a folder for names of one file.
func dropRemapsOf(inside *os.Root, link, dir string, looked map[string]bool) error {
	file, err := os.Stat(link)
	if err != nil || !file.Mode().IsRegular() {
		return nil //nolint:nilerr // it is held no more, or is none that gets such a name
	}
	key := fmt.Sprint(dir, file.Sys().(*syscall.Stat_t).Ino)
	if looked[key] {
		return nil
	}
	looked[key] = true
	dir = filepath.Join(".", dir)
	f, err := inside.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil //nolint:nilerr // the folder is gone too, or is in another file system
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if !remapped.MatchString(name) {
				continue
			}
			if other, err := inside.Lstat(filepath.Join(dir, name)); err != nil || !os.SameFile(file, other) {
				continue
			}
			if err := inside.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
}
