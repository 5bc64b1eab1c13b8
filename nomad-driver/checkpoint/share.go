package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ShareImages makes the folder to, with the images of from in it, for a restore of its own. They are other names of the same files, but for what a restore
// writes over (rebase); where the file system gives no more names, they are copies.
func ShareImages(from, to string) (err error) {
	entries, err := os.ReadDir(from)
	if err == nil {
		err = os.Mkdir(to, 0o700)
	}
	if err != nil {
		return fmt.Errorf("share images: %w", err)
	}
	dir, err := openDir(to)
	if err != nil {
		return fmt.Errorf("share images: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, e := range entries {
		old := filepath.Join(from, e.Name())
		if !e.Type().IsRegular() {
			return fmt.Errorf("share images: %s is no regular file", old)
		}
		if !strings.HasPrefix(e.Name(), usernsPrefix) && os.Link(old, filepath.Join(to, e.Name())) == nil {
			continue
		}
		if err := copyImage(old, dir, e.Name()); err != nil {
			return fmt.Errorf("share images: %w", err)
		}
	}
	return nil
}
