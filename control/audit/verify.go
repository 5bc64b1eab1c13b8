package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// VerifyOptions say what a log is held against.
type VerifyOptions struct {
	// Keys are public keys that were kept elsewhere. nil: those in the log's own folder, which whoever can replace all of the folder
	// can replace as well.
	Keys []PublicKey
	// Expect is an event that the log must hold, as a head that was kept elsewhere says. It finds a log that was cut back to an earlier
	// head together with its heads, which nothing in the folder tells.
	Expect *Expect
}

// Expect is an event and its hash.
type Expect struct {
	Index uint64
	Hash  Hash
}

// Report is what Verify found.
type Report struct {
	Log      string    `json:"log"`    // of the chain
	Server   string    `json:"server"` // that wrote its last segment
	Segments int       `json:"segments"`
	First    uint64    `json:"first"` // index of the first event that is there
	Last     uint64    `json:"last"`  // and of the last
	LastHash string    `json:"last_hash"`
	LastTime time.Time `json:"last_time,omitzero"`
	Removed  uint64    `json:"removed"` // events before First, which retention removed and a signed checkpoint stands for

	Heads     int    `json:"heads"`     // that are signed, and fit
	Waiting   int    `json:"waiting"`   // that are not signed yet
	SignedTo  uint64 `json:"signed_to"` // index of the last event that a signature vouches for
	Unsigned  uint64 `json:"unsigned"`  // events behind it: a cut among them cannot be told from a log that ends there
	TornBytes int64  `json:"torn_bytes,omitempty"`
	OwnKeys   bool   `json:"own_keys"` // the keys were taken from the folder itself

	Bad *DamageError `json:"-"` // the first event that is not as it was written
}

// Verify reads all of a log, which may be in use, and checks every event, the chain through them, and the signatures. Damage is in
// the report; an error means that it could not be looked for.
func Verify(dir string, o VerifyOptions) (Report, error) {
	v := verifier{dir: dir, o: o, keys: map[string]PublicKey{}}
	err := v.run()
	var bad *DamageError
	if errors.As(err, &bad) {
		v.Bad, err = bad, nil
	}
	if err != nil {
		err = fmt.Errorf("verify audit log %s: %w", dir, err)
	}
	return v.Report, err
}

type verifier struct {
	Report
	dir  string
	o    VerifyOptions
	keys map[string]PublicKey // by fingerprint

	id      LogID
	at      position
	buf     []byte
	newest  uint64 // of all heads
	expects bool   // Expect was seen
}

func damage(index uint64, format string, args ...any) error {
	return &DamageError{index, fmt.Sprintf(format, args...)}
}

func (v *verifier) run() error {
	firsts, err := listSegments(v.dir)
	if err != nil {
		return err
	}
	if err := v.loadKeys(); err != nil {
		return err
	}
	cp, err := v.checkpoint()
	if err != nil {
		return err
	}
	for len(firsts) > 0 && firsts[0] <= v.at.index { // removed, but for the file
		firsts = firsts[1:]
	}
	if len(firsts) == 0 {
		if cp != nil {
			return damage(v.at.index+1, "its segment is missing")
		}
		return errors.New("there is no audit log in this folder")
	}
	v.First, v.Removed = v.at.index+1, v.at.index
	for i, first := range firsts {
		if first != v.at.index+1 {
			return damage(v.at.index+1, "it is missing: the next segment begins with event %d", first)
		}
		if err := v.segment(first, cp != nil && i == 0, i == len(firsts)-1); err != nil {
			return err
		}
		v.Segments++
	}
	if v.at.index < v.newest {
		return damage(v.at.index+1, "it is missing: the log was cut, the head of event %d vouches for it", v.newest)
	}
	if e := v.o.Expect; e != nil && !v.expects {
		if e.Index > v.at.index {
			return damage(v.at.index+1, "it is missing: the log was cut, event %d is expected", e.Index)
		}
		return damage(e.Index, "it is not in the log any more: retention has removed it")
	}
	return nil
}

func (v *verifier) loadKeys() error {
	list := v.o.Keys
	if list == nil {
		v.OwnKeys = true
		var err error
		if list, err = ReadKeys(filepath.Join(v.dir, keysFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, k := range list {
		v.keys[k.Fingerprint()] = k
	}
	return nil
}

// checkSignature checks a head that has one.
func (v *verifier) checkSignature(h Head) error {
	s := h.Signature
	k, ok := v.keys[s.Key]
	if !ok {
		return fmt.Errorf("key %.40q, which it is signed with, is not known", s.Key)
	}
	return k.Verify(message(h), Signature{Version: keys.KeyVersion(s.Version), Algorithm: s.Algorithm, Value: s.Value})
}

// checkpoint goes to where the log begins.
func (v *verifier) checkpoint() (*Head, error) {
	b, err := os.ReadFile(filepath.Join(v.dir, checkpointFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var h Head
	if err := json.Unmarshal(b, &h); err != nil {
		return nil, damage(1, "the checkpoint is not readable: %v", err)
	}
	hash, err := ParseHash(h.Hash)
	if err == nil && (h.Kind != kindCheckpoint || h.Signature == nil) {
		err = errors.New("it is no signed checkpoint")
	}
	if err == nil {
		err = v.checkSignature(h)
	}
	if err != nil {
		return nil, damage(1, "the checkpoint up to event %d does not count: %v", h.Index, err)
	}
	v.Log = h.Log
	v.at = position{index: h.Index, hash: hash}
	v.SignedTo = h.Index
	return &h, nil
}

// segment checks one file of the log, from its header to its last event, and its heads.
func (v *verifier) segment(first uint64, afterCheckpoint, last bool) error {
	f, err := os.Open(filepath.Join(v.dir, segmentName(first)))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h, begin, err := readHeader(f)
	if err != nil {
		return damage(first, "%s: %v", segmentName(first), err)
	}
	switch {
	case h.first != first:
		return damage(first, "the header of its segment says that it begins with event %d", h.first)
	case h.prev != v.at.hash:
		return damage(first, "its segment does not follow the event before it")
	case v.Segments > 0 && h.log != v.id, afterCheckpoint && h.log.String() != v.Log:
		return damage(first, "its segment is of another log")
	}
	v.id, v.Log, v.Server = h.log, h.log.String(), h.server
	heads, err := readHeads(filepath.Join(v.dir, headsName(first)))
	if err != nil {
		return damage(v.SignedTo+1, "nothing vouches for it: %s: %v", headsName(first), err)
	}
	for _, head := range heads {
		v.newest = max(v.newest, head.Index)
	}
	v.at.hash = h.hash()
	if err := v.events(f, begin, st.Size(), heads, last); err != nil {
		return err
	}
	if v.at.index < first { // it has no event yet
		v.at.hash = h.prev
	}
	return nil
}

func (v *verifier) events(f *os.File, begin, size int64, heads []Head, last bool) error {
	sc := newScanner(f, begin, size)
	for {
		rec, err := sc.next()
		if errors.Is(err, io.EOF) {
			break
		}
		want := v.at.index + 1
		if err != nil {
			if last && errors.Is(err, errShort) && want > v.newest {
				v.TornBytes = size - rec.offset
				break
			}
			return damage(want, "%s at byte %d: %v", f.Name(), rec.offset, err)
		}
		if got := bodyIndex(rec.body); got != want {
			return damage(want, "event %d stands in its place", got)
		}
		var sum Hash
		if sum, v.buf = chain(v.buf, hashedEvent, v.at.hash, rec.body); sum != rec.hash {
			return damage(want, "its hash does not fit: it was changed, or is not the one that was written behind event %d", v.at.index)
		}
		if _, err := decodeEvent(rec.body); err != nil {
			return damage(want, "%v", err)
		}
		v.at = position{index: want, hash: sum, offset: sc.offset, time: bodyTime(rec.body)}
		v.Last, v.LastHash, v.LastTime = want, sum.String(), v.at.time
		if e := v.o.Expect; e != nil && e.Index == want {
			if v.expects = true; e.Hash != sum {
				return damage(want, "its hash is %s, %s is expected: it or an event before it was changed, and all hashes after it", sum, e.Hash)
			}
		}
		for len(heads) > 0 && heads[0].Index <= want {
			if err := v.head(heads[0]); err != nil {
				return err
			}
			heads = heads[1:]
		}
	}
	v.Unsigned = v.at.index - v.SignedTo
	if len(heads) > 0 && heads[0].Index <= v.at.index {
		return damage(heads[0].Index, "its head does not belong into this segment")
	}
	return nil
}

// head checks a head against the event that was read last.
func (v *verifier) head(h Head) error {
	from := v.SignedTo + 1
	switch {
	case h.Index != v.at.index:
		return damage(h.Index, "its head is out of order")
	case h.Log != v.Log || h.Kind != kindHead:
		return damage(h.Index, "its head is of another log")
	case h.Hash != v.at.hash.String():
		return damage(from, "the events from here to %d are not those that a head vouches for: one was changed, and all hashes after it", h.Index)
	case h.Signature == nil:
		v.Waiting++
		return nil
	}
	if err := v.checkSignature(h); err != nil {
		return damage(h.Index, "the signature of its head: %v", err)
	}
	v.Heads++
	v.SignedTo = h.Index
	return nil
}
