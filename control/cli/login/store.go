package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

const (
	storeVersion = 1
	maxStore     = 1 << 20 // bytes of the file
	lockPause    = 20 * time.Millisecond
)

// Store is the file with a person's logins, one for each service, by the service's address. It is readable by its owner alone, and one
// that others can read is not used.
type Store struct{ path string }

// NewStore returns the file beside the settings file at path.
func NewStore(path string) *Store { return &Store{filepath.Join(filepath.Dir(path), "logins.json")} }

// Path returns where the file is.
func (s *Store) Path() string { return s.path }

// content is the file.
type content struct {
	Version int              `json:"version"`
	Logins  map[string]Login `json:"logins"`
}

// Get returns the login at a service.
func (s *Store) Get(address string) (Login, bool, error) {
	c, err := s.read()
	l, ok := c.Logins[address]
	return l, ok, err
}

// Put keeps a login.
func (s *Store) Put(ctx context.Context, address string, l Login) error {
	return s.change(ctx, func(c *content) error {
		c.Logins[address] = l
		return nil
	})
}

// Remove forgets the login at a service, and reports whether there was one.
func (s *Store) Remove(ctx context.Context, address string) (was bool, err error) {
	err = s.change(ctx, func(c *content) error {
		_, was = c.Logins[address]
		delete(c.Logins, address)
		return nil
	})
	return was, err
}

// Clear forgets all logins, also where the file cannot be read.
func (s *Store) Clear() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("logins: %w", err)
	}
	return nil
}

// Fresh returns the login at a service with a token that is good for a while, which it gets from the issuer where need be. Of several
// programs at once one does it: issuers take a second use of the same refresh token for a theft.
func (s *Store) Fresh(ctx context.Context, address string, now time.Time) (l Login, ok bool, err error) {
	if l, ok, err = s.Get(address); err != nil || !ok || !l.Due(now) {
		return l, ok, err
	}
	err = s.change(ctx, func(c *content) error {
		if l, ok = c.Logins[address]; !ok || !l.Due(now) {
			return errUnchanged
		}
		var err error
		if l, err = l.Renew(ctx); err != nil {
			return err
		}
		c.Logins[address] = l
		return nil
	})
	return l, ok, err
}

func (s *Store) read() (content, error) {
	c := content{Version: storeVersion, Logins: map[string]Login{}}
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("logins: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return c, fmt.Errorf("logins: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return c, fmt.Errorf("logins: others can read %s, which holds tokens: chmod 600 it, or log in again after `soulbox logout -all`", s.path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxStore))
	if err != nil {
		return c, fmt.Errorf("logins: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil || c.Version != storeVersion {
		return content{}, fmt.Errorf("logins: %s is damaged, or of another version: `soulbox logout -all` removes it", s.path)
	}
	if c.Logins == nil {
		c.Logins = map[string]Login{}
	}
	return c, nil
}

// errUnchanged ends a change that has nothing to write.
var errUnchanged = errors.New("nothing changes")

// change changes the file. Others who want to wait.
func (s *Store) change(ctx context.Context, do func(*content) error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := s.read()
	if err != nil {
		return err
	}
	if err := do(&c); err != nil {
		if errors.Is(err, errUnchanged) {
			return nil
		}
		return err
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("logins: %w", err)
	}
	return settings.Write(s.path, append(b, '\n'))
}

// lock takes a lock that ends with the process. The file itself is replaced at each change, so it is another one's.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return nil, fmt.Errorf("logins: %w", err)
	}
	f, err := os.OpenFile(s.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("logins: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("logins: lock: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(lockPause):
		}
	}
}
