package chunk

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	keyBytes = 32
	// keyFormat is the format of a key file with several versions: that of package keys' rings, and the store's identity beside.
	keyFormat  = 1
	maxKeyFile = 1 << 20
	maxKeys    = 1000
)

// LocalKey is a Sealer with the versions of a key in a file: for nodes on their own. All nodes on one backend need the same file. It is read
// again when it has changed, so that a rotation reaches a node that runs.
type LocalKey struct {
	path string

	mu     sync.Mutex
	loaded keyStat
	ring   keyRing
}

var _ Sealer = (*LocalKey)(nil)

// keyRing is the content of a key file.
type keyRing struct {
	Format int               `json:"format"`
	Last   int               `json:"last"` // the highest version that ever was
	Keys   map[string][]byte `json:"keys"` // by version
	// Identity is what tells this store from others, whatever becomes of the version that it came from. Hexadecimal.
	Identity string `json:"identity,omitempty"`
}

// keyStat tells one content of a file from another.
type keyStat struct {
	ino         uint64
	size, mtime int64
}

// OpenLocalKey reads the key at path, or makes it.
func OpenLocalKey(path string) (*LocalKey, error) {
	k := &LocalKey{path: path}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		var key [keyBytes]byte
		_, _ = rand.Read(key[:]) // never fails
		if err := writeKey(path, key[:]); err != nil {
			return nil, err
		}
	}
	_, err := k.now()
	return k, err
}

// now returns the ring as the file has it. A file that cannot be read, or is no good, is an error, and changes nothing.
func (k *LocalKey) now() (keyRing, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(k.path, &st); err != nil {
		return keyRing{}, fmt.Errorf("snapshot key %s: %w", k.path, err)
	}
	stat := keyStat{st.Ino, st.Size, st.Mtim.Nano()}
	if stat == k.loaded && k.ring.Keys != nil {
		return k.ring, nil
	}
	r, err := readRing(k.path)
	if err != nil {
		return keyRing{}, err
	}
	k.ring, k.loaded = r, stat
	return r, nil
}

func readRing(path string) (keyRing, error) {
	bad := func(format string, args ...any) (keyRing, error) {
		return keyRing{}, fmt.Errorf("snapshot key %s: "+format, append([]any{path}, args...)...)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return bad("%w", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return bad("may be read by others than its owner (mode %v)", fi.Mode().Perm())
	}
	if fi.Size() > maxKeyFile {
		return bad("is larger than %d bytes", maxKeyFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return bad("%w", err)
	}
	if len(b) == keyBytes { // one key, as it is made
		return keyRing{Format: keyFormat, Last: 1, Keys: map[string][]byte{"1": b}}, nil
	}
	var r keyRing
	if err := json.Unmarshal(b, &r); err != nil {
		return bad("is neither a key of %d bytes nor a ring of keys: %w", keyBytes, err)
	}
	if r.Format != keyFormat || len(r.Keys) == 0 || len(r.Keys) > maxKeys {
		return bad("has format %d and %d keys, not format %d and 1 to %d keys", r.Format, len(r.Keys), keyFormat, maxKeys)
	}
	for v, key := range r.Keys {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > r.Last || strconv.Itoa(n) != v || len(key) != keyBytes {
			return bad("version %.20q is none, or its key has not %d bytes", v, keyBytes)
		}
	}
	return r, nil
}

func (r keyRing) versions() []int {
	var out []int
	for v := range r.Keys {
		n, _ := strconv.Atoi(v) // readRing has checked it
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (r keyRing) current() int {
	v := r.versions()
	return v[len(v)-1]
}

func (r keyRing) mac(version int, purpose string, message []byte) ([]byte, error) {
	key, ok := r.Keys[strconv.Itoa(version)]
	switch {
	case !ok && version >= 1 && version < r.versions()[0]:
		return nil, fmt.Errorf("%w: %d", ErrRevoked, version)
	case !ok:
		return nil, fmt.Errorf("%w: this node's key has no version %d yet", ErrBad, version)
	}
	h := hmac.New(sha256.New, key)
	_, _ = h.Write([]byte(purpose + "\x00"))
	_, _ = h.Write(message)
	return h.Sum(nil), nil
}

func (r keyRing) check(message []byte, version int, mac []byte) error {
	want, err := r.mac(version, "seal", message)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, want) {
		return fmt.Errorf("%w: the seal does not fit", ErrBad)
	}
	return nil
}

func (r keyRing) secret(version int, purpose string) ([32]byte, error) {
	b, err := r.mac(version, "secret", []byte(purpose))
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(b), nil
}

// identity is what the store was known by before a first rotation.
func (r keyRing) identity() ([32]byte, error) {
	if r.Identity != "" {
		b, err := hex.DecodeString(r.Identity)
		if err != nil || len(b) != 32 {
			return [32]byte{}, fmt.Errorf("identity of the snapshot key is not 32 bytes in hexadecimal")
		}
		return [32]byte(b), nil
	}
	b, err := r.mac(r.versions()[0], "secret", []byte("identity of the snapshot store"))
	if err != nil {
		return [32]byte{}, err
	}
	return [32]byte(b), nil
}

// Current implements Sealer.
func (k *LocalKey) Current(context.Context) (int, error) {
	r, err := k.now()
	if err != nil {
		return 0, err
	}
	return r.current(), nil
}

// Seal implements Sealer.
func (k *LocalKey) Seal(_ context.Context, version int, message []byte) ([]byte, error) {
	r, err := k.now()
	if err != nil {
		return nil, err
	}
	return r.mac(version, "seal", message)
}

// Check implements Sealer.
func (k *LocalKey) Check(_ context.Context, message []byte, version int, mac []byte) error {
	r, err := k.now()
	if err != nil {
		return err
	}
	return r.check(message, version, mac)
}

// Secret implements Sealer.
func (k *LocalKey) Secret(_ context.Context, version int, purpose string) ([32]byte, error) {
	r, err := k.now()
	if err != nil {
		return [32]byte{}, err
	}
	return r.secret(version, purpose)
}

// Identity implements Sealer.
func (k *LocalKey) Identity(context.Context) ([32]byte, error) {
	r, err := k.now()
	if err != nil {
		return [32]byte{}, err
	}
	return r.identity()
}

// RotateKey adds a version to the key file at path and returns its number. What older versions have sealed is good as long as they are
// there. The same file goes to every node of the store before anything is stored with it, or their nodes cannot read that.
func RotateKey(path string) (int, error) {
	return changeKey(path, func(r *keyRing) error {
		if len(r.Keys) == maxKeys {
			return fmt.Errorf("snapshot key %s has %d versions: revoke old ones", path, maxKeys)
		}
		var key [keyBytes]byte
		_, _ = rand.Read(key[:]) // never fails
		r.Last++
		r.Keys[strconv.Itoa(r.Last)] = key[:]
		return nil
	})
}

// RevokeKey removes a version of the key file at path and all before it, and returns the current one. Snapshots that they have sealed cannot
// be read any more. The current version cannot be revoked.
func RevokeKey(path string, version int) (int, error) {
	return changeKey(path, func(r *keyRing) error {
		if version < 1 || version >= r.current() {
			return fmt.Errorf("version %d cannot be revoked: the current one is %d", version, r.current())
		}
		for _, v := range r.versions() {
			if v <= version {
				delete(r.Keys, strconv.Itoa(v))
			}
		}
		return nil
	})
}

func changeKey(path string, change func(*keyRing) error) (int, error) {
	r, err := readRing(path)
	if err != nil {
		return 0, err
	}
	id, err := r.identity()
	if err != nil {
		return 0, err
	}
	r.Identity = hex.EncodeToString(id[:])
	if err := change(&r); err != nil {
		return 0, err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a change that was killed
		return 0, fmt.Errorf("snapshot key: %w", err)
	}
	if err := writeKey(temp, append(b, '\n')); err != nil {
		return 0, err
	}
	if err := os.Rename(temp, path); err != nil {
		return 0, fmt.Errorf("snapshot key: %w", err)
	}
	return r.current(), syncKeyDir(path)
}

// writeKey makes a key file durably. One that another process has made meanwhile is an error: the next start takes it.
func writeKey(path string, key []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("snapshot key: %w", err)
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("snapshot key: %w", err)
	}
	return syncKeyDir(path)
}

func syncKeyDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("snapshot key: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
