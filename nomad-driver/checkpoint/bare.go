package checkpoint

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A sandbox in which nothing runs but PID 1 has nothing that is not in its writable layer: PID 1 is the node's own, and a new one is made in a quarter of the time in which CRIU
// brings the old one back.

// bareImages are the kinds of images that every dump has, by what their names begin with. What else a sandbox has makes another one: files in memory, objects of System V,
// files without a name, terminals.
var bareImages = []string{
	"cgroup.", "core-", "fdinfo-", "files.", "fs-", "ids-", "inventory.", "ipcns-var-", "mm-", "mountpoints-", "pagemap-", "pages-", "pipes-data.", "pstree.", "seccomp.",
	"stats-", "timens-", "userns-", "utsns-",
}

// pstreeMagic begins the image of the process tree, after commonMagic.
const pstreeMagic = 0x50273030

// maxTree bounds the image of the process tree.
const maxTree = 64 << 20

// Bare reports whether a dump in a folder holds PID 1 and nothing else.
func Bare(images string) (bool, error) {
	entries, err := os.ReadDir(images)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if !slices.ContainsFunc(bareImages, func(kind string) bool { return strings.HasPrefix(e.Name(), kind) }) {
			return false, nil
		}
	}
	path := filepath.Join(images, "pstree.img")
	b, err := readImage(path, pstreeMagic, maxTree)
	if err != nil {
		return false, err
	}
	n := 0
	for b = b[8:]; len(b) >= 4; n++ {
		size := uint64(binary.LittleEndian.Uint32(b))
		if size > uint64(len(b)-4) {
			return false, fmt.Errorf("image %s is cut", filepath.Base(path))
		}
		b = b[4+size:]
	}
	return n == 1, nil
}
