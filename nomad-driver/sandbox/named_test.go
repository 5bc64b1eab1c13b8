package sandbox

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// Names lead through the folders of a sandbox, which may have put links there: none leads out of its layer.
func TestKeepNames_staysInTheLayer(t *testing.T) {
	outside := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(outside, "link_remap.1"), []byte("of the host"), 0o600))
	for name, target := range map[string]string{"absolute": outside, "relative": "../../" + filepath.Base(outside)} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			must.NoError(t, os.Mkdir(filepath.Join(state, "upper"), 0o700))
			must.NoError(t, os.Symlink(target, filepath.Join(state, "upper", "dir")))
			s := &Sandbox{at: layout{state: state}}
			_ = s.keepNames([]string{"dir/link_remap.1"}) // refused, or not found
			entries, err := os.ReadDir(filepath.Join(state, namedDir))
			must.NoError(t, err)
			must.Len(t, 0, entries)
		})
	}
}

// What was kept comes back under its name, as often as it is asked for, and is the same file.
func TestReturnNames_mayBeRepeated(t *testing.T) {
	state, images := t.TempDir(), t.TempDir()
	file := filepath.Join(state, "upper", "a", "link_remap.7")
	must.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must.NoError(t, os.WriteFile(file, []byte("held open"), 0o600))
	must.NoError(t, os.Link(file, filepath.Join(state, "upper", "a", "other")))
	s := &Sandbox{at: layout{state: state}}
	must.NoError(t, s.keepNames([]string{"a/link_remap.7", "tmp/link_remap.8"}))
	must.NoError(t, os.Remove(file))
	writeImages(t, images, "/a/link_remap.7")
	for range 2 {
		must.NoError(t, ReturnNames(state, images))
		before, err := os.Stat(filepath.Join(state, "upper", "a", "other"))
		must.NoError(t, err)
		after, err := os.Stat(file)
		must.NoError(t, err)
		must.True(t, os.SameFile(before, after))
	}
	must.NoError(t, os.Remove(file)) // by a restore that failed at its end
	must.NoError(t, ReturnNames(state, images))
	must.FileExists(t, file)
	must.NoError(t, ForgetNames(state))
	must.NoError(t, ReturnNames(state, images))
}

// writeImages writes the two images that say that a file of this name was opened by another one.
func writeImages(t *testing.T, dir, name string) {
	t.Helper()
	field := func(tag byte, body []byte) []byte { return append([]byte{tag, byte(len(body))}, body...) }
	entry := func(magic uint32, body []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, 0x54564319)
		b = binary.LittleEndian.AppendUint32(b, magic)
		return append(binary.LittleEndian.AppendUint32(b, uint32(len(body))), body...)
	}
	owner := field(5<<3|2, []byte{1 << 3, 0, 2 << 3, 0, 3 << 3, 0, 4 << 3, 0, 5 << 3, 0})
	reg := append([]byte{1 << 3, 9, 2 << 3, 0, 3 << 3, 0}, append(owner, field(6<<3|2, []byte(name))...)...)
	file := append([]byte{1 << 3, 1, 2 << 3, 9}, field(3<<3|2, reg)...)
	must.NoError(t, os.WriteFile(filepath.Join(dir, "remap-fpath.img"), entry(0x59133954, []byte{1 << 3, 1, 2 << 3, 9, 3 << 3, 0}), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "files.img"), entry(0x56303138, file), 0o600))
}
