package unpack

import (
	"archive/tar"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

const (
	maxXattrs     = 64
	maxXattrBytes = 32 << 10 // of all names and values of one entry
)

// xattrs returns the extended attributes of h that belong to a template.
func (w *writer) xattrs(p string, h *tar.Header) ([]tree.XattrValue, error) {
	var out []tree.XattrValue
	size := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, tree.XattrRecord)
		if !ok {
			continue
		}
		switch tree.Xattr(name) {
		case tree.XattrRefuse:
			return nil, fmt.Errorf("%w: %.200q has the extended attribute %.100q, which steers overlay file systems", ErrInvalid, p, name)
		case tree.XattrDrop:
			w.dropped["extended attributes "+xattrClass(name)]++
			continue
		}
		if h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
			w.dropped["extended attributes of links"]++
			continue
		}
		if err := checkXattr(p, name, value); err != nil {
			return nil, err
		}
		size += len(name) + len(value)
		out = append(out, tree.XattrValue{Name: name, Value: value})
	}
	if len(out) > maxXattrs || size > maxXattrBytes {
		return nil, fmt.Errorf("%w: %.200q has more than %d extended attributes or %d bytes of them", ErrInvalid, p, maxXattrs, maxXattrBytes)
	}
	slices.SortFunc(out, func(a, b tree.XattrValue) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// xattrClass keeps the number of distinct words in a report small, whatever an archive says.
func xattrClass(name string) string {
	for _, c := range []string{"security.", "system."} {
		if strings.HasPrefix(name, c) {
			return c + "*"
		}
	}
	return "of unknown kind"
}

// checkXattr checks what is kept. File capabilities have to be of the second revision: the third names a user of the machine
// that they came from as the root that they are for.
func checkXattr(p, name, value string) error {
	if len(name) > maxName || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: %.200q has an extended attribute with a malformed name", ErrInvalid, p)
	}
	if name != tree.CapabilityXattr {
		return nil
	}
	const revisionMask, revision2, size2 = 0xff000000, 0x02000000, 20
	if len(value) != size2 || binary.LittleEndian.Uint32([]byte(value))&revisionMask != revision2 {
		return fmt.Errorf("%w: %.200q has file capabilities that are not of revision 2", ErrInvalid, p)
	}
	return nil
}
