package checkpoint

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/userns"
)

// idCount is how many ids a sandbox has.
const idCount = 65536

// usernsPrefix begins the name of the one image that is rewritten in place.
const usernsPrefix = "userns-"

// usernsMagic begins an image of a user namespace: that of all images, and its own.
const (
	commonMagic = 0x54564319
	usernsMagic = 0x55474906
	maxUserns   = 64 << 10
)

// rebase makes the images those of a sandbox whose id 0 is the host's id base. All other images speak of ids inside. It is also where
// an id map that no sandbox has is refused.
func rebase(dir string, base uint32) error {
	found, err := filepath.Glob(filepath.Join(dir, usernsPrefix+"*.img"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("images have %d user namespaces, want 1", len(found))
	}
	st, err := os.Lstat(found[0])
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxUserns {
		return fmt.Errorf("image %s is no regular file of at most %d bytes", filepath.Base(found[0]), maxUserns)
	}
	b, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	out, changed, err := rebased(b, base)
	if err != nil {
		return fmt.Errorf("image %s: %w", filepath.Base(found[0]), err)
	}
	if !changed {
		return nil
	}
	return os.WriteFile(found[0], out, 0o644)
}

func rebased(b []byte, base uint32) (_ []byte, changed bool, err error) {
	if len(b) < 12 || binary.LittleEndian.Uint32(b) != commonMagic || binary.LittleEndian.Uint32(b[4:]) != usernsMagic ||
		int64(binary.LittleEndian.Uint32(b[8:])) != int64(len(b)-12) {
		return nil, false, fmt.Errorf("it is not one of a user namespace")
	}
	var e userns.UsernsEntry
	if err := proto.Unmarshal(b[12:], &e); err != nil {
		return nil, false, err
	}
	for _, m := range [][]*userns.UidGidExtent{e.GetUidMap(), e.GetGidMap()} {
		if len(m) != 1 || m[0].GetFirst() != 0 || m[0].GetCount() != idCount {
			return nil, false, fmt.Errorf("it maps other ids than a sandbox has")
		}
		if m[0].GetLowerFirst() != base {
			m[0].LowerFirst, changed = proto.Uint32(base), true
		}
	}
	if !changed {
		return b, false, nil
	}
	body, err := proto.Marshal(&e)
	if err != nil {
		return nil, false, err
	}
	out := append([]byte(nil), b[:8]...)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
	return append(out, body...), true, nil
}
