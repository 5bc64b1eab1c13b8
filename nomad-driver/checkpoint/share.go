package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ShareImages makes the folder to, with the images of from in it, for a restore of its own. They are other names of the same files, but for what a restore
// writes over (rebase); where the file system gives no more names, they are copies.
func ShareImages(from, to string) error {
	entries, err := os.ReadDir(from)
	if err == nil {
		err = os.Mkdir(to, 0o700)
	}
	if err != nil {
		return fmt.Errorf("share images: %w", err)
	}
	for _, e := range entries {
		old, name := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if !e.Type().IsRegular() {
			return fmt.Errorf("share images: %s is no regular file", old)
		}
		if !strings.HasPrefix(e.Name(), usernsPrefix) && os.Link(old, name) == nil {
			continue
		}
		if err := copyFile(old, name); err != nil {
			return fmt.Errorf("share images: %w", err)
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
