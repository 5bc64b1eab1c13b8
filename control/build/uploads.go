package build

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Limits of uploads.
const (
	maxUpload  = 2 << 30  // bytes of one
	maxUploads = 16 << 30 // bytes of all; the oldest go
	ticketTime = time.Hour
	maxTickets = 10_000
)

var hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// uploads are the files of COPY steps, each a tar, by tenant and by the hash that the client made of its files. The hash is the
// client's own word: so nobody sees another tenant's files by it.
type uploads struct {
	dir string
	now func() time.Time

	mu      sync.Mutex
	tickets map[string]uploadTicket
}

type uploadTicket struct {
	path    string
	expires time.Time
}

func openUploads(dir string, now func() time.Time) (*uploads, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("uploads: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "part-*"))
	if err != nil {
		return nil, fmt.Errorf("uploads: %w", err)
	}
	for _, f := range left { // of a service that was killed
		_ = os.Remove(f)
	}
	return &uploads{dir: dir, now: now, tickets: map[string]uploadTicket{}}, nil
}

// path is where a tenant's files are. A tenant's name is any text, so it is spelled in hexadecimal.
func (u *uploads) path(tenant, hash string) string {
	return filepath.Join(u.dir, hex.EncodeToString([]byte(tenant)), hash)
}

// Files says whether the files of a COPY step are here, and gives a ticket to upload them with: GET /templates/{tid}/files/{hash}.
func (s *Service) Files(tenant, hash string) (present bool, ticket string, err error) {
	if !hashForm.MatchString(hash) {
		return false, "", invalid("hash %.80q is not 64 hexadecimal digits", hash)
	}
	u := s.uploads
	path := u.path(tenant, hash)
	if _, err := os.Stat(path); err == nil {
		present = true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	now := u.now()
	for k, t := range u.tickets {
		if now.After(t.expires) {
			delete(u.tickets, k)
		}
	}
	if len(u.tickets) >= maxTickets {
		return false, "", api.Errorf(http.StatusTooManyRequests, api.CodeCapacity, "more than %d uploads are expected", maxTickets)
	}
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	ticket = hex.EncodeToString(b[:])
	u.tickets[ticket] = uploadTicket{path, now.Add(ticketTime)}
	return present, ticket, nil
}

// Upload takes the files that a ticket is for. Nothing is kept unless all of r arrives.
func (s *Service) Upload(ticket string, r io.Reader) (err error) {
	u := s.uploads
	u.mu.Lock()
	t, ok := u.tickets[ticket]
	u.mu.Unlock()
	if !ok || u.now().After(t.expires) {
		return api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized, "the link is not valid any more")
	}
	dir := filepath.Dir(t.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	f, err := os.CreateTemp(dir, "part-")
	if err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	n, err := io.Copy(f, io.LimitReader(r, maxUpload+1))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if n > maxUpload {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "the files are larger than %d bytes", int64(maxUpload))
	}
	if err := os.Rename(f.Name(), t.path); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return u.trim(t.path)
}

// trim removes the oldest uploads, but never keep, until all fit.
func (u *uploads) trim(keep string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	for {
		files, err := filepath.Glob(filepath.Join(u.dir, "*", "*"))
		if err != nil {
			return fmt.Errorf("uploads: %w", err)
		}
		var total int64
		oldest, at := "", time.Time{}
		for _, f := range files {
			st, err := os.Stat(f)
			if err != nil {
				continue // it has just gone
			}
			total += st.Size()
			if f != keep && (oldest == "" || st.ModTime().Before(at)) {
				oldest, at = f, st.ModTime()
			}
		}
		if total <= maxUploads || oldest == "" {
			return nil
		}
		if err := os.Remove(oldest); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("uploads: %w", err)
		}
	}
}
