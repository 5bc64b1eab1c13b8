package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// syncer makes written files durable behind the back of whoever wrote them: many changes share one journal commit, and
// nobody waits for it.
type syncer struct {
	log hclog.Logger

	mu    sync.Mutex
	dirty map[string]struct{} // paths of files and directories
	wake  chan struct{}       // capacity 1

	turn sync.Mutex // held by a flush, so that one that finds nothing to do returns when what was to do is done
}

// syncPace is the least time between two flushes. Each holds up whoever syncs something on the same file system meanwhile, such as a log that somebody
// waits for.
const syncPace = 500 * time.Millisecond

func newSyncer(log hclog.Logger) *syncer {
	return &syncer{log: log, dirty: map[string]struct{}{}, wake: make(chan struct{}, 1)}
}

// changed says that path was written, or a file put into or taken from the directory path.
func (s *syncer) changed(path string) {
	s.mu.Lock()
	s.dirty[path] = struct{}{}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run syncs until ctx ends, and then once more.
func (s *syncer) run(ctx context.Context) {
	for {
		select {
		case <-s.wake:
			select {
			case <-time.After(syncPace):
			case <-ctx.Done():
			}
			s.flush()
		case <-ctx.Done():
			s.flush()
			return
		}
	}
}

// flush syncs what has changed: the files, then their directories.
func (s *syncer) flush() {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = make(map[string]struct{})
	s.mu.Unlock()
	dirs := map[string]struct{}{}
	for path := range dirty {
		if s.fsync(path) {
			dirs[filepath.Dir(path)] = struct{}{}
		} else {
			dirs[path] = struct{}{}
		}
	}
	for dir := range dirs {
		s.fsync(dir)
	}
}

// fsync syncs path and reports whether it is a file, also one that is gone by now.
func (s *syncer) fsync(path string) (file bool) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return true
	}
	if err != nil {
		s.log.Error("record cannot be made durable", "path", path, "error", err)
		return true
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil {
		file = !fi.IsDir()
		err = f.Sync()
	}
	if err != nil {
		s.log.Error("record cannot be made durable", "path", path, "error", err)
	}
	return file
}

// writeFileSync writes a file durably: temporary file, fsync, rename, fsync of the directory.
func writeFileSync(path string, b []byte, perm os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
