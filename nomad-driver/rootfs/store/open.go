package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/unpack"
)

// The names in a store's folder.
const (
	lockFile  = "lock"
	namesFile = "names.json"
	treesDir  = "trees"
	ownDir    = "own" // of tenants
	tempDir   = "tmp"
	rootDir   = "root"          // in trees/<hex>
	metaFile  = "template.json" // in trees/<hex>
)

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	dir    string
	limits unpack.Limits
	lock   *os.File

	mu     sync.Mutex
	names  map[string]string // name → digest; as in names.json
	trees  map[string]*entry // digest → what is stored
	own    map[Own]*entry    // copies that one tenant alone uses
	copies map[Own]*copying  // that are being made
	closed bool

	ctx    context.Context // of the copies; ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// entry is one stored tree.
type entry struct {
	meta   meta
	leases int
}

// Open opens the store in cfg.Dir, makes it where it is missing, and removes what a crash left half-made. The folder is
// readable for root only: a template's setuid programs belong to the host's root on disk and must not be reachable by other
// users of the host.
func Open(cfg Config) (*Store, error) {
	s := &Store{
		dir: cfg.Dir, limits: cfg.Limits, names: map[string]string{}, trees: map[string]*entry{}, own: map[Own]*entry{}, copies: map[Own]*copying{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := os.Mkdir(s.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make template store: %w", err)
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("protect template store: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open template store: %w", err)
	}
	s.lock = lock
	if err := s.load(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

func (s *Store) load() error {
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: %s", ErrLocked, s.dir)
		}
		return fmt.Errorf("lock template store %s: %w", s.dir, err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, tempDir)); err != nil {
		return fmt.Errorf("sweep template store: %w", err)
	}
	for _, name := range []string{tempDir, treesDir, ownDir} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make template store: %w", err)
		}
	}
	if err := s.loadTrees(); err != nil {
		return err
	}
	if err := s.loadOwn(); err != nil {
		return err
	}
	return s.loadNames()
}

func (s *Store) loadTrees() error {
	list, err := os.ReadDir(filepath.Join(s.dir, treesDir))
	if err != nil {
		return fmt.Errorf("list template store: %w", err)
	}
	for _, d := range list {
		digest := "sha256:" + d.Name()
		if !IsDigest(digest) {
			return fmt.Errorf("template store %s holds %q, which is not a digest: remove it", s.dir, d.Name())
		}
		m, err := readMeta(filepath.Join(s.dir, treesDir, d.Name(), metaFile))
		if err != nil {
			return err
		}
		if m.Digest != digest {
			return fmt.Errorf("template %s says that its digest is %s", digest, m.Digest)
		}
		s.trees[digest] = &entry{meta: m}
	}
	return nil
}

func (s *Store) loadNames() error {
	n, err := readNames(filepath.Join(s.dir, namesFile))
	if err != nil {
		return err
	}
	for name, digest := range n {
		if s.trees[digest] == nil {
			// Names are written after trees and removed before them, so this is damage from outside.
			return fmt.Errorf("template store %s: name %q points to %s, which is missing", s.dir, name, digest)
		}
		s.names[name] = digest
	}
	return nil
}

// Close releases the store. Leases end with it.
func (s *Store) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.cancel()
	s.wg.Wait()
	return s.lock.Close()
}

func (s *Store) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// root returns the path of a stored tree's root.
func (s *Store) root(digest string) string {
	return filepath.Join(s.treePath(digest), rootDir)
}

func (s *Store) treePath(digest string) string {
	return filepath.Join(s.dir, treesDir, strings.TrimPrefix(digest, "sha256:"))
}
