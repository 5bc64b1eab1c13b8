package chunk

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Names of files are bytes, and JSON has text: one that is no UTF-8 is written as notText and base64. No name has that byte, and a reader of before refuses it.
const notText = "\x00"

func toText(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	return notText + base64.RawStdEncoding.EncodeToString([]byte(name))
}

func fromText(text string) (string, error) {
	encoded, ok := strings.CutPrefix(text, notText)
	if !ok {
		return text, nil
	}
	b, err := base64.RawStdEncoding.DecodeString(encoded)
	if err != nil {
		return "", fmt.Errorf("name %.100q: %w", text, err)
	}
	return string(b), nil
}

// text returns the manifest with names that JSON holds.
func (m *Manifest) text() *Manifest {
	out := m
	for i := range m.Entries {
		e := &m.Entries[i]
		t := *e
		t.Name, t.Target, t.Same, t.Xattrs = toText(e.Name), toText(e.Target), toText(e.Same), nil
		odd := t.Name != e.Name || t.Target != e.Target || t.Same != e.Same
		for k, v := range e.Xattrs {
			if t.Xattrs == nil {
				t.Xattrs = make(map[string][]byte, len(e.Xattrs))
			}
			t.Xattrs[toText(k)] = v
			odd = odd || !utf8.ValidString(k)
		}
		if !odd {
			continue
		}
		if out == m {
			copied := *m
			copied.Entries = slices.Clone(m.Entries)
			out = &copied
		}
		out.Entries[i] = t
	}
	return out
}

// bytes gives the manifest the names that text has written.
func (m *Manifest) bytes() (err error) {
	for i := range m.Entries {
		e := &m.Entries[i]
		for _, s := range []*string{&e.Name, &e.Target, &e.Same} {
			if *s, err = fromText(*s); err != nil {
				return err
			}
		}
		for k, v := range e.Xattrs {
			name, err := fromText(k)
			if err != nil {
				return err
			}
			if name != k {
				delete(e.Xattrs, k)
				e.Xattrs[name] = v
			}
		}
	}
	return nil
}

// ids is how many ids a sandbox has.
const ids = 1 << 16

// Attributes that name owners: linux/capability.h, linux/posix_acl_xattr.h.
const (
	capability    = "security.capability"
	capRevision3  = 0x03000000
	capRevisions  = 0xff000000
	capRootID     = 20
	capSize3      = 24
	aclHeader     = 4
	aclEntry      = 8
	aclEntryID    = 4
	aclNamedUser  = 0x02
	aclNamedGroup = 0x08
)

// owners returns the attribute with f called for each id in it: that of the namespace whose root gets the capabilities of a file, and those that an access list names. What is none that the
// kernel has written stays as it is.
func owners(name string, value []byte, f func(id uint32) uint32) []byte {
	var at []int
	switch name {
	case capability:
		if len(value) == capSize3 && binary.LittleEndian.Uint32(value)&capRevisions == capRevision3 {
			at = append(at, capRootID)
		}
	case "system.posix_acl_access", "system.posix_acl_default":
		for o := aclHeader; o+aclEntry <= len(value); o += aclEntry {
			if tag := binary.LittleEndian.Uint16(value[o:]); tag == aclNamedUser || tag == aclNamedGroup {
				at = append(at, o+aclEntryID)
			}
		}
	}
	if len(at) == 0 {
		return value
	}
	out := slices.Clone(value)
	for _, o := range at {
		binary.LittleEndian.PutUint32(out[o:], f(binary.LittleEndian.Uint32(out[o:])))
	}
	return out
}

// inside makes an id of the host one of a sandbox that has ids from base on; one that it has not stays.
func inside(base uint32) func(uint32) uint32 {
	return func(id uint32) uint32 {
		if id >= base && id-base < ids {
			return id - base
		}
		return id
	}
}

// outside is the inverse of inside. One that is beyond a sandbox's ids was stored by a version that left it as it was.
func outside(base uint32) func(uint32) uint32 {
	return func(id uint32) uint32 {
		if id < ids {
			return id + base
		}
		return id
	}
}
