package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// file is a Store that is a file with mode 0600, for one process.
type file struct {
	path string

	mu       sync.RWMutex
	data     string
	revision uint64
}

var _ Store = (*file)(nil)

func openFile(path string) (*file, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f := &file{path: path}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others than its owner (mode %v)", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	f.data, f.revision = string(b), 1
	return f, nil
}

// Load implements Store.
func (f *file) Load() (string, uint64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.data, f.revision, nil
}

// Save implements Store.
func (f *file) Save(_ context.Context, data string, revision uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision != f.revision {
		return ErrChanged
	}
	if err := keys.WriteFile(f.path, []byte(data)); err != nil {
		return err
	}
	f.data, f.revision = data, revision+1
	return nil
}
