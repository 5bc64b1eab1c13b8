package checkpoint

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/regfile"
	remap "github.com/checkpoint-restore/go-criu/v7/crit/images/remap-file-path"
)

// image is an image of messages, as CRIU writes it.
func image(t testing.TB, magic uint32, messages ...proto.Message) []byte {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, commonMagic)
	b = binary.LittleEndian.AppendUint32(b, magic)
	for _, m := range messages {
		entry, err := proto.Marshal(m)
		must.NoError(t, err)
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(entry))), entry...)
	}
	return b
}

func regular(id uint32, name string) proto.Message {
	return &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: &id, Reg: &regfile.RegFileEntry{
		Id: &id, Flags: proto.Uint32(0), Pos: proto.Uint64(0), Name: &name,
		Fown: &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)},
	}}
}

func moved(orig, to uint32, typ remap.RemapType) proto.Message {
	return &remap.RemapFilePathEntry{OrigId: &orig, RemapId: &to, RemapType: &typ}
}

func TestRemaps(t *testing.T) {
	linked := moved(1, 9, remap.RemapType_LINKED)
	for _, c := range []struct {
		name  string
		remap []proto.Message
		files []proto.Message
		want  []string
		fails string
	}{
		{name: "none"},
		{"a ghost", []proto.Message{moved(1, 9, remap.RemapType_GHOST)}, []proto.Message{regular(9, "/a/link_remap.9")}, nil, ""},
		{"linked", []proto.Message{linked, moved(2, 8, remap.RemapType_LINKED), moved(3, 9, remap.RemapType_LINKED)},
			[]proto.Message{regular(1, "/a/x"), regular(9, "/a/link_remap.9"), regular(8, "/link_remap.8")}, []string{"a/link_remap.9", "link_remap.8"}, ""},
		{"a file of the sandbox's", []proto.Message{linked}, []proto.Message{regular(9, "/etc/passwd")}, nil, ""},
		{"a way out", []proto.Message{linked}, []proto.Message{regular(9, "/../../link_remap.9")}, nil, "no path below a root"},
		{"a way around", []proto.Message{linked}, []proto.Message{regular(9, "/a/../link_remap.9")}, nil, "no path below a root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.remap != nil {
				must.NoError(t, os.WriteFile(filepath.Join(dir, "remap-fpath.img"), image(t, remapMagic, c.remap...), 0o600))
				must.NoError(t, os.WriteFile(filepath.Join(dir, "files.img"), image(t, filesMagic, c.files...), 0o600))
			}
			got, err := Remaps(dir)
			if c.fails != "" {
				must.ErrorContains(t, err, c.fails)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.want, got)
		})
	}
}

// FuzzRemaps looks for images that make the reader fall, or return a name that leads out of the root.
func FuzzRemaps(f *testing.F) {
	f.Add(image(f, remapMagic, moved(1, 9, remap.RemapType_LINKED)), image(f, filesMagic, regular(9, "/a/link_remap.9")))
	f.Fuzz(func(t *testing.T, remaps, files []byte) {
		dir := t.TempDir()
		must.NoError(t, os.WriteFile(filepath.Join(dir, "remap-fpath.img"), remaps, 0o600))
		must.NoError(t, os.WriteFile(filepath.Join(dir, "files.img"), files, 0o600))
		names, err := Remaps(dir)
		if err != nil {
			return
		}
		for _, name := range names {
			must.True(t, filepath.IsLocal(name))
			must.True(t, remapped.MatchString(filepath.Base(name)))
		}
	})
}
