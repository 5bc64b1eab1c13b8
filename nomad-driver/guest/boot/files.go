package boot

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// writeFiles writes what the node wants programs to find.
func writeFiles(files []guest.BootFile) error {
	for _, f := range files {
		if err := os.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
		if f.Append {
			if err := appendTo(f.Path, f.Content); err != nil {
				return fmt.Errorf("write %s: %w", f.Path, err)
			}
			continue
		}
		if f.Replace {
			if st, err := os.Lstat(f.Path); err == nil && !st.Mode().IsRegular() {
				if err := os.Remove(f.Path); err != nil {
					return fmt.Errorf("write %s: %w", f.Path, err)
				}
			}
		}
		if err := rewrite(f.Path, func([]byte, bool) []byte { return []byte(f.Content) }); err != nil {
			return err
		}
	}
	return nil
}

// appendTo adds to a file, which is made where there is none. What is no regular file is left alone.
func appendTo(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() {
		_, err = f.WriteString(content)
	}
	return errors.Join(err, f.Close())
}

// checkFiles refuses files that no node asks for.
func checkFiles(files []guest.BootFile) error {
	if len(files) > guest.MaxBootFiles {
		return fmt.Errorf("files: %d, at most %d", len(files), guest.MaxBootFiles)
	}
	for i, f := range files {
		switch {
		case !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/":
			return fmt.Errorf("files[%d].path: %q is not absolute and clean", i, f.Path)
		case len(f.Content) > guest.MaxBootFileBytes:
			return fmt.Errorf("files[%d].content: %d bytes, at most %d", i, len(f.Content), guest.MaxBootFileBytes)
		}
	}
	return nil
}
