package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// formatVersion is the version of names.json and template.json.
const formatVersion = 1

// meta is template.json.
type meta struct {
	Version   int           `json:"version"`
	Digest    string        `json:"digest"`
	Bytes     int64         `json:"bytes"`
	Files     int64         `json:"files"`
	CreatedAt time.Time     `json:"created_at"`
	Defaults  tree.Defaults `json:"defaults"`
}

// names is names.json.
type names struct {
	Version int               `json:"version"`
	Names   map[string]string `json:"names"`
}

func readMeta(path string) (meta, error) {
	var m meta
	if err := readJSON(path, &m); err != nil {
		return meta{}, err
	}
	if m.Version != formatVersion {
		return meta{}, fmt.Errorf("%s has version %d; this program reads %d", path, m.Version, formatVersion)
	}
	return m, nil
}

// readNames reads the names; a store that has none yet has no file.
func readNames(path string) (map[string]string, error) {
	var n names
	err := readJSON(path, &n)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if n.Version != formatVersion {
		return nil, fmt.Errorf("%s has version %d; this program reads %d", path, n.Version, formatVersion)
	}
	return n.Names, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// writeJSON replaces path durably: after a crash it has its old or its new content, and what is left of the attempt is in
// temp, a folder on the same file system that is swept at the next start.
func writeJSON(temp, path string, v any) (err error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(temp, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
