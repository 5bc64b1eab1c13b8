// Package chunk keeps snapshots: trees of files whose content is cut into pages, stored once for each tenant, and found again through
// a sealed manifest.
//
// It owns the format of manifests and packs, what is shared between snapshots, and the removal of what none needs any more. Where the
// bytes lie is a Backend's concern, who may seal is a Sealer's. It knows nothing of processes and sandboxes. See DESIGN.md.
package chunk

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"
)

// Page is the unit in which content is compared: the page of memory. Memory images and files are cut at its multiples.
const Page = 4096

const (
	packPages = 1024 // of a pack: 4 MiB
	packBytes = packPages * Page
	hashSize  = 32
	pageHash  = 16 // bytes kept of a page's hash: keyed, so that nobody without the key finds two pages of one hash
	// maxManifest bounds a manifest, encoded.
	maxManifest    = 64 << 20
	maxBackendName = 512
)

// Errors that callers ask for.
var (
	ErrNotFound = errors.New("not in the snapshot store")
	// ErrBad tells that what the store gave is not what was put: a manifest that was not sealed by this installation, or data that is
	// not what its manifest says.
	ErrBad    = errors.New("snapshot is damaged or was not made here")
	ErrExists = errors.New("snapshot exists")
	// ErrRevoked tells that the version of the key which a snapshot was stored with is gone for good. It is an ErrBad.
	ErrRevoked error = revoked{}
	// ErrUnavailable tells that the backend cannot be asked now.
	ErrUnavailable = errors.New("the snapshot store does not answer")
)

// revoked is an ErrBad that does not say so: nothing is damaged.
type revoked struct{}

func (revoked) Error() string { return "the version of the snapshot key is revoked" }
func (revoked) Unwrap() error { return ErrBad }

// Backend keeps named bytes. Names are those that CheckName lets through. Package chunktest says what a backend must do. Its methods may be called from any goroutine.
type Backend interface {
	// Put stores b, which is never empty, durably, all of it or nothing; what was there under the name is replaced.
	Put(ctx context.Context, name string, b []byte) error
	// Get returns what is there, or an error with ErrNotFound; more than limit bytes are an error.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// Delete removes it. What is not there is no error.
	Delete(ctx context.Context, name string) error
	// Identity tells one place of bytes from another: it is the same for all that reach the same.
	Identity() string
	// List returns all names that begin with prefix, with when they were put.
	List(ctx context.Context, prefix string) ([]Object, error)
}

// CheckName refuses what is no name in a Backend: a clean, relative path of [a-z0-9./-].
func CheckName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > maxBackendName || path.Clean(name) != name || name[0] == '/' || strings.HasPrefix(name, "../") {
		return fmt.Errorf("name %.100q is none", name)
	}
	for i := range len(name) {
		if c := name[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '/' && c != '-' {
			return fmt.Errorf("name %.100q has other characters than [a-z0-9./-]", name)
		}
	}
	return nil
}

// Object is one thing in a Backend.
type Object struct {
	Name string
	Size int64
	Put  time.Time
}

// Sealer makes and checks the seals of manifests, and gives the secret from which a tenant's hashes and its key are made, by versions. It may
// rotate at any time: what is stored from then on is of the new version, and what was stored is read with its own as long as that is kept.
type Sealer interface {
	// Current returns the version for what is stored now.
	Current(ctx context.Context) (version int, err error)
	Seal(ctx context.Context, version int, message []byte) (mac []byte, err error)
	// Check returns an error with ErrBad where mac is not what Seal made of message with that version.
	Check(ctx context.Context, message []byte, version int, mac []byte) error
	// Secret returns 32 bytes that are always the same for a version and a purpose. Of a version that is there no more, the error has
	// ErrRevoked in its chain.
	Secret(ctx context.Context, version int, purpose string) ([32]byte, error)
	// Identity returns what stays the same over rotations, and is the same for all who can read each other's.
	Identity(ctx context.Context) ([32]byte, error)
}

// Store keeps snapshots in a Backend. Its methods may be called from any goroutine, and by several nodes on one backend.
type Store struct {
	back Backend
	seal Sealer
	now  func() time.Time

	packsMu sync.Mutex
	packs   map[string]Pack // that indexes told of, by tenant and id

	recent recent

	enc *zstd.Encoder
	dec *zstd.Decoder
}

// Open returns the store in a backend.
func Open(b Backend, s Sealer) (*Store, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(parallelPacks))
	if err != nil {
		return nil, fmt.Errorf("chunk store: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(parallelPacks), zstd.WithDecoderMaxMemory(maxManifest))
	if err != nil {
		return nil, fmt.Errorf("chunk store: %w", err)
	}
	return &Store{back: b, seal: s, now: time.Now, packs: map[string]Pack{}, enc: enc, dec: dec}, nil
}

// Identity tells one store from another: nodes with the same one can restore each other's snapshots.
func (s *Store) Identity(ctx context.Context) (string, error) {
	key, err := s.seal.Identity(ctx)
	if err != nil {
		return "", fmt.Errorf("identity of the snapshot store: %w", err)
	}
	sum := tenant{key: key}.hash([]byte(s.back.Identity()))
	return fmt.Sprintf("%x", sum[:16]), nil
}

// Close ends it. Nothing may be under way.
func (s *Store) Close() error {
	s.recent.close()
	s.dec.Close()
	return s.enc.Close()
}

// tenant is where a tenant's things are and, with a version of the key, how they are hashed.
type tenant struct {
	name    string // as folder: a hash, because a tenant's name is anything
	version int
	key     [32]byte
}

// folder is a tenant without a key: where its things are.
func folder(name string) tenant {
	sum := blake3.Sum256([]byte("tenant " + name))
	return tenant{name: fmt.Sprintf("%x", sum[:16])}
}

func (s *Store) tenant(ctx context.Context, name string, version int) (tenant, error) {
	key, err := s.seal.Secret(ctx, version, "snapshot pages of "+name)
	if err != nil {
		return tenant{}, fmt.Errorf("key of tenant %.60q: %w", name, err)
	}
	t := folder(name)
	t.version, t.key = version, key
	return t, nil
}

// writes is the tenant with the version of the key that is stored with now.
func (s *Store) writes(ctx context.Context, name string) (tenant, error) {
	version, err := s.seal.Current(ctx)
	if err != nil {
		return tenant{}, err
	}
	return s.tenant(ctx, name, version)
}

func (t tenant) hash(b []byte) (out [hashSize]byte) { return sum(t.hasher(), b) }

func (t tenant) hasher() *blake3.Hasher {
	h, err := blake3.NewKeyed(t.key[:])
	if err != nil {
		panic(err) // the key has 32 bytes
	}
	return h
}

func sum(h *blake3.Hasher, b []byte) (out [hashSize]byte) {
	h.Reset()
	_, _ = h.Write(b) // never fails
	h.Sum(out[:0])
	return out
}

func (t tenant) pack(id string) string      { return "t/" + t.name + "/packs/" + id }
func (t tenant) index(id string) string     { return "t/" + t.name + "/index/" + id }
func (t tenant) tombstone(id string) string { return "t/" + t.name + "/doomed/" + id }
func (t tenant) note(id string) string      { return "t/" + t.name + "/notes/" + id }
func (t tenant) manifest(id string) string  { return "t/" + t.name + "/manifests/" + id }
