package chunk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Folder is a Backend in a folder of a local or shared file system.
type Folder struct {
	dir string
	id  string
}

var _ Backend = (*Folder)(nil)

const (
	folderTemp = ".tmp-"
	folderID   = "id" // file with the folder's identity
	maxID      = 64
)

// OpenFolder returns the backend in dir, which it makes, and removes what writes that were cut short have left.
func OpenFolder(dir string) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), folderTemp) {
			err = os.Remove(p)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	id, err := folderIdentity(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot store: %w", err)
	}
	return &Folder{dir: dir, id: id}, nil
}

// folderIdentity reads the identity of a folder, or makes it: of many at once, one makes it for all.
func folderIdentity(dir string) (string, error) {
	path := filepath.Join(dir, folderID)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t, err := os.CreateTemp(dir, folderTemp)
		if err != nil {
			return "", err
		}
		_, err = t.WriteString(newID())
		err = errors.Join(err, t.Sync(), t.Close())
		if err == nil {
			err = os.Link(t.Name(), path)
		}
		if err = errors.Join(err, os.Remove(t.Name())); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		b, err = os.ReadFile(path)
		if err != nil {
			return "", err
		}
		return checkedID(path, b)
	}
	if err != nil {
		return "", err
	}
	return checkedID(path, b)
}

func checkedID(path string, b []byte) (string, error) {
	if len(b) > maxID || !validID(string(b)) {
		return "", fmt.Errorf("%s holds %.80q, which is no identity", path, b)
	}
	return string(b), nil
}

// Identity is what the folder's file says.
func (f *Folder) Identity() string { return "folder " + f.id }

func (f *Folder) path(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	return filepath.Join(f.dir, name), nil
}

// Put writes a temporary file, syncs it, renames it and syncs the folder.
func (f *Folder) Put(ctx context.Context, name string, b []byte) (err error) {
	p, err := f.path(name)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	dir := filepath.Dir(p)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	t, err := os.CreateTemp(dir, folderTemp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(t.Name()))
		}
	}()
	_, err = t.Write(b)
	if err = errors.Join(err, t.Sync(), t.Close()); err != nil {
		return err
	}
	if err := os.Rename(t.Name(), p); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil //nolint:nilerr // it is there; only a power cut could take it
	}
	_ = d.Sync()
	return d.Close()
}

// Get reads a file.
func (f *Folder) Get(_ context.Context, name string, limit int64) ([]byte, error) {
	p, err := f.path(name)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: %s is larger than %d bytes", ErrBad, name, limit)
	}
	return b, err
}

// Delete removes a file.
func (f *Folder) Delete(_ context.Context, name string) error {
	p, err := f.path(name)
	if err != nil {
		return err
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List returns the files of a folder: a prefix ends in a slash.
func (f *Folder) List(_ context.Context, prefix string) ([]Object, error) {
	p, err := f.path(strings.TrimSuffix(prefix, "/"))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Object
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), folderTemp) || e.IsDir() {
			continue
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, Object{Name: prefix + e.Name(), Size: fi.Size(), Put: fi.ModTime()})
	}
	return out, nil
}
