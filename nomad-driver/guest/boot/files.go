package boot

import (
	"fmt"
	"os"
	"path"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// writeFiles writes what the node wants programs to find.
func writeFiles(files []guest.BootFile) error {
	for _, f := range files {
		if err := os.MkdirAll(path.Dir(f.Path), 0o755); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
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
