package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

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
