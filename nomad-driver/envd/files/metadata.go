package files

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Limits of a file's metadata, which is kept in its extended attributes.
const (
	maxKey      = 255 - len(guest.MetadataPrefix) // bytes; the kernel's limit of names
	maxMetadata = 4096                            // bytes of all keys and values
)

const metadataHeader = "X-Metadata-"

// metadataOf takes a request's metadata from its headers.
func metadataOf(h http.Header) (map[string]string, error) {
	var m map[string]string
	total := 0
	for name, values := range h {
		if len(name) < len(metadataHeader) || !strings.EqualFold(name[:len(metadataHeader)], metadataHeader) {
			continue
		}
		key := strings.ToLower(name[len(metadataHeader):])
		if key == "" {
			return nil, fail(http.StatusBadRequest, "metadata key is empty")
		}
		if len(key) > maxKey {
			return nil, fail(http.StatusBadRequest, "metadata key '%.40s…' has %d bytes, at most %d are allowed", key, len(key), maxKey)
		}
		value := values[len(values)-1]
		if !utf8.ValidString(value) {
			return nil, fail(http.StatusBadRequest, "metadata value of '%s' is not UTF-8", key)
		}
		if total += len(key) + len(value); total > maxMetadata {
			return nil, fail(http.StatusBadRequest, "metadata has more than %d bytes", maxMetadata)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[key] = value
	}
	return m, nil
}

// setMetadata gives an open file exactly this metadata.
func setMetadata(f *os.File, m map[string]string) error {
	fd := int(f.Fd())
	var buf [64 << 10]byte // the kernel's limit of a list
	n, err := unix.Flistxattr(fd, buf[:])
	if err != nil && err != unix.ENOTSUP {
		return fmt.Errorf("list attributes: %w", err)
	}
	for name := range strings.SplitSeq(string(buf[:max(n, 0)]), "\x00") {
		key, ok := strings.CutPrefix(name, guest.MetadataPrefix)
		if _, keep := m[key]; !ok || keep {
			continue
		}
		if err := unix.Fremovexattr(fd, name); err != nil && err != unix.ENODATA {
			return fmt.Errorf("remove attribute: %w", err)
		}
	}
	for key, value := range m {
		switch err := unix.Fsetxattr(fd, guest.MetadataPrefix+key, []byte(value), 0); err {
		case nil:
		case unix.ENOTSUP:
			return fail(http.StatusBadRequest, "metadata: the file system of this path has no extended attributes")
		case unix.E2BIG, unix.ERANGE:
			return fail(http.StatusBadRequest, "metadata: the file system of this path takes less")
		default:
			return fmt.Errorf("set attribute %q: %w", key, err)
		}
	}
	return nil
}
