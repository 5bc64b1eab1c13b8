package local

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/keys"
)

const signerFormat = 1

// Signer signs with Ed25519 keys in a file, which is its owner's alone. Whoever can read the file can sign as well: what it
// protects against is a change by somebody who cannot, such as the reader of a backup.
type Signer struct {
	path string

	mu   sync.RWMutex
	list []signingKey // in the order of versions; never empty
}

var _ audit.Signer = (*Signer)(nil)

type signingKey struct {
	version keys.KeyVersion
	private ed25519.PrivateKey
}

// signerFile is the file's content, as JSON. The seeds stand in the order of their versions, from 1 on.
type signerFile struct {
	Format int      `json:"format"`
	Seeds  [][]byte `json:"seeds"`
}

// OpenSigner reads the keys at path, and makes the file with a first one where it does not exist. Of two processes that do so at
// once, both get the same.
func OpenSigner(path string) (s *Signer, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("signing keys %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	s = &Signer{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, s.rotate()
	}
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(path); err != nil {
		return nil, err
	} else if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("it may be read by others than its owner (mode %v)", fi.Mode().Perm())
	}
	var f signerFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, err
	}
	if f.Format != signerFormat {
		return nil, fmt.Errorf("format %d, this version reads %d", f.Format, signerFormat)
	}
	if len(f.Seeds) == 0 || len(f.Seeds) > maxKeys {
		return nil, fmt.Errorf("it holds %d keys, 1 to %d are wanted", len(f.Seeds), maxKeys)
	}
	for i, seed := range f.Seeds {
		if len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("version %d is damaged", i+1)
		}
		s.list = append(s.list, signingKey{keys.KeyVersion(i + 1), ed25519.NewKeyFromSeed(seed)})
	}
	return s, nil
}

// Sign implements audit.Signer.
func (s *Signer) Sign(_ context.Context, messages [][]byte) ([]audit.Signature, error) {
	if err := audit.CheckMessages(messages); err != nil {
		return nil, err
	}
	s.mu.RLock()
	k := s.list[len(s.list)-1]
	s.mu.RUnlock()
	out := make([]audit.Signature, len(messages))
	for i, m := range messages {
		out[i] = audit.Signature{Version: k.version, Algorithm: audit.AlgorithmEd25519, Value: ed25519.Sign(k.private, m)}
	}
	return out, nil
}

// PublicKeys implements audit.Signer.
func (s *Signer) PublicKeys(context.Context) ([]audit.PublicKey, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]audit.PublicKey, 0, len(s.list))
	for _, k := range s.list {
		public, _ := k.private.Public().(ed25519.PublicKey)
		out = append(out, audit.PublicKey{Version: k.version, Algorithm: audit.AlgorithmEd25519, Key: public})
	}
	return out, nil
}

// Rotate makes a new version, which signs from then on. The older ones stay in the file: they are what past signatures are
// checked with.
func (s *Signer) Rotate(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.rotate(); err != nil {
		return fmt.Errorf("signing keys %s: %w", s.path, err)
	}
	return nil
}

func (s *Signer) rotate() error {
	if len(s.list) == maxKeys {
		return fmt.Errorf("there are %d versions, which is the most", maxKeys)
	}
	f := signerFile{Format: signerFormat}
	for _, k := range s.list {
		f.Seeds = append(f.Seeds, k.private.Seed())
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	f.Seeds = append(f.Seeds, private.Seed())
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := keys.WriteFile(s.path, b); err != nil {
		return err
	}
	s.list = append(s.list, signingKey{keys.KeyVersion(len(f.Seeds)), private})
	return nil
}
