package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
)

// namedDir is the folder, beside the writable layer, of what open files have been named for a checkpoint. It is on the layer's file system, and counts as part of it.
const namedDir = "named"

// keepNames gives the files of these names, which lose them right away, names beside the writable layer.
func (s *Sandbox) keepNames(names []string) error {
	if err := os.RemoveAll(filepath.Join(s.at.state, namedDir)); err != nil {
		return err
	}
	return link(s.at.state, names, func(root *os.Root, name string) error {
		if err := root.Mkdir(namedDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err := root.Link(filepath.Join("upper", name), filepath.Join(namedDir, filepath.Base(name)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is in a file system that is part of the images
		}
		return err
	})
}

// ReturnNames gives files of the writable layer in the folder state the names again by which a checkpoint in these images knows them. Nothing of the sandbox
// may run. Whoever copies the layer of a checkpoint calls it before; Restore does, and takes the names away.
func ReturnNames(state, images string) error {
	names, err := checkpoint.Remaps(images)
	if err != nil {
		return err
	}
	return link(state, names, func(root *os.Root, name string) error {
		err := root.Link(filepath.Join(namedDir, filepath.Base(name)), filepath.Join("upper", name))
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) { // it was done before, or is a copy's whose layer has them
			return nil
		}
		return err
	})
}

// ForgetNames lets go of what was kept of names, once no restore of that checkpoint follows any more: CRIU takes the names of the layer away before a restore is over.
func ForgetNames(state string) error { return os.RemoveAll(filepath.Join(state, namedDir)) }

// link calls f for each name with the folder of the writable layer, out of which no path leads.
func link(state string, names []string, f func(root *os.Root, name string) error) (err error) {
	if len(names) == 0 {
		return nil
	}
	root, err := os.OpenRoot(state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	for _, name := range names {
		if err := f(root, name); err != nil {
			return fmt.Errorf("name %s of an open file: %w", name, err)
		}
	}
	return nil
}
