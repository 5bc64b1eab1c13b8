package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// Head says how far the chain goes, and by its signature that the server said so.
type Head = api.AuditHead

const (
	headFormat     = 1
	kindHead       = "head"
	kindCheckpoint = "checkpoint" // what is before it was removed on purpose

	keysFile       = "keys.json"
	checkpointFile = "checkpoint.json"
)

// message is what is signed of a head.
func message(h Head) []byte {
	return fmt.Appendf(nil, "soulbox audit %s %d\nlog %s\nindex %d\nhash %s\ntime %s\n",
		h.Kind, h.Format, h.Log, h.Index, h.Hash, h.Time.UTC().Format(time.RFC3339Nano))
}

// headLine is a line of a file of heads: a head without its signature, or the signature of one that stands above.
type headLine struct {
	Head      *Head               `json:"head,omitempty"`
	Index     uint64              `json:"index,omitempty"`
	Signature *api.AuditSignature `json:"signature,omitempty"`
}

// heads are the log's heads: what waits for its signature, and the newest that has one.
type heads struct {
	signing sync.Mutex // held during a call to the signer: one at a time
	failing bool       // the last call failed
	public  map[keys.KeyVersion]PublicKey

	mu      sync.Mutex    // of what follows, and held while files of heads are written
	pending []pendingHead // oldest first
	newest  uint64        // index of the newest head, signed or not
	signed  *Head         // the newest one with a signature
}

type pendingHead struct {
	segment uint64
	head    Head
}

// Head returns the newest head that is signed, nil where there is none yet, and how many wait for a signature.
func (l *Log) Head() (signed *Head, waiting int) {
	l.heads.mu.Lock()
	defer l.heads.mu.Unlock()
	return l.heads.signed, len(l.heads.pending)
}

func (l *Log) newHead(kind string, p position) Head {
	return Head{Format: headFormat, Kind: kind, Log: l.id.String(), Index: p.index, Hash: p.hash.String(), Time: l.cfg.Now().UTC()}
}

// addHead writes down a head at p, the end of an event of the segment, where there is none yet.
func (l *Log) addHead(segment uint64, p position) error {
	h := &l.heads
	h.mu.Lock()
	defer h.mu.Unlock()
	if p.index <= h.newest || p.index < segment {
		return nil
	}
	head := l.newHead(kindHead, p)
	if err := appendLines(l.headsPath(segment), headLine{Head: &head}); err != nil {
		return fmt.Errorf("write head of event %d: %w", p.index, err)
	}
	h.newest = p.index
	h.pending = append(h.pending, pendingHead{segment, head})
	return nil
}

func (l *Log) headsPath(segment uint64) string { return filepath.Join(l.cfg.Dir, headsName(segment)) }

// sign makes a head at the end of the chain, and has all heads signed that wait for it.
func (l *Log) sign(ctx context.Context) {
	l.mu.Lock()
	at, segment, broken := l.state, l.segments[len(l.segments)-1].first, l.broken
	l.mu.Unlock()
	if broken == nil {
		if err := l.addHead(segment, at); err != nil {
			l.log.Warn("no head of the audit log", "error", err)
		}
	}
	h := &l.heads
	h.signing.Lock()
	defer h.signing.Unlock()
	for ctx.Err() == nil {
		h.mu.Lock()
		part := slices.Clone(h.pending[:min(len(h.pending), MaxSignBatch)])
		all := len(h.pending)
		h.mu.Unlock()
		if len(part) == 0 {
			return
		}
		err := l.signPart(ctx, part)
		if failing := err != nil; failing != h.failing && ctx.Err() == nil {
			if h.failing = failing; failing {
				l.log.Error("heads of the audit log wait for their signatures", "heads", all, "error", err)
			} else {
				l.log.Info("heads of the audit log are signed again")
			}
		}
		if err != nil {
			return
		}
	}
}

// signPart has the first pending heads signed and writes the signatures to their segments. h.signing is held.
func (l *Log) signPart(ctx context.Context, part []pendingHead) error {
	list := make([]Head, len(part))
	for i, p := range part {
		list[i] = p.head
	}
	if err := l.signHeads(ctx, list); err != nil {
		return err
	}
	h := &l.heads
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(part) > 0 { // segment by segment
		n := 1
		for n < len(part) && part[n].segment == part[0].segment {
			n++
		}
		var lines []headLine
		for _, head := range list[:n] {
			lines = append(lines, headLine{Index: head.Index, Signature: head.Signature})
		}
		if err := appendLines(l.headsPath(part[0].segment), lines...); err != nil {
			return fmt.Errorf("write signatures: %w", err)
		}
		h.signed = &list[n-1]
		h.pending = slices.Clone(h.pending[n:])
		part, list = part[n:], list[n:]
	}
	return nil
}

// signHeads puts signatures into heads that fit the signer's public keys, which are on disk before them. heads.signing is held.
func (l *Log) signHeads(ctx context.Context, list []Head) error {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.SignTimeout)
	defer cancel()
	messages := make([][]byte, len(list))
	for i, h := range list {
		messages[i] = message(h)
	}
	sigs, err := l.cfg.Signer.Sign(ctx, messages)
	if err != nil {
		return err
	}
	if len(sigs) != len(list) {
		return fmt.Errorf("%d signatures of %d heads", len(sigs), len(list))
	}
	for i, sig := range sigs {
		key, ok := l.heads.public[sig.Version]
		if !ok || i == 0 && key.Verify(messages[i], sig) != nil { // a new version, or another signer
			if err := l.loadKeys(ctx); err != nil {
				return err
			}
			key = l.heads.public[sig.Version]
		}
		if err := key.Verify(messages[i], sig); err != nil {
			return fmt.Errorf("head of event %d: %w", list[i].Index, err)
		}
		list[i].Signature = &api.AuditSignature{Version: uint32(sig.Version), Algorithm: sig.Algorithm, Key: key.Fingerprint(), Value: sig.Value}
	}
	return nil
}

// loadKeys asks the signer for its public keys and adds them to those on disk. heads.signing is held.
func (l *Log) loadKeys(ctx context.Context) error {
	list, err := l.cfg.Signer.PublicKeys(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(l.cfg.Dir, keysFile)
	all, err := ReadKeys(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	have := map[string]bool{}
	for _, k := range all {
		have[k.Fingerprint()] = true
	}
	public := map[keys.KeyVersion]PublicKey{}
	added := false
	for _, k := range list {
		if err := k.Check(); err != nil {
			return err
		}
		public[k.Version] = k
		if !have[k.Fingerprint()] {
			all, added = append(all, k), true
		}
	}
	if added {
		b, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		if err := keys.WriteFile(path, append(b, '\n')); err != nil {
			return fmt.Errorf("write public keys: %w", err)
		}
	}
	l.heads.public = public
	return nil
}

// Keys returns all public keys that heads of this log are signed with.
func (l *Log) Keys() ([]PublicKey, error) { return ReadKeys(filepath.Join(l.cfg.Dir, keysFile)) }

// ReadKeys reads public keys from a file.
func ReadKeys(path string) ([]PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var list []PublicKey
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, k := range list {
		if err := k.Check(); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return list, nil
}

// appendLines adds lines to a file, durably. A last line that a crash left unfinished goes.
func appendLines(path string, lines ...headLine) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	end := int64(bytes.LastIndexByte(old, '\n') + 1)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	if _, err := f.WriteAt(b.Bytes(), end); err != nil {
		return errors.Join(err, f.Truncate(end))
	}
	if err := datasync(f); err != nil {
		return err
	}
	if end == 0 {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readHeads reads a segment's heads, each with its signature where it has one. A missing file has none.
func readHeads(path string) ([]Head, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	var out []Head
	at := map[uint64]int{}
	for n := 1; len(b) > 0; n++ {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		b = rest
		var l headLine
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&l); err != nil {
			return out, fmt.Errorf("line %d: %w", n, err)
		}
		switch {
		case l.Head != nil && l.Head.Signature == nil && l.Signature == nil:
			at[l.Head.Index] = len(out)
			out = append(out, *l.Head)
		case l.Head == nil && l.Signature != nil:
			i, ok := at[l.Index]
			if !ok {
				return out, fmt.Errorf("line %d: the signature of event %d has no head", n, l.Index)
			}
			if out[i].Signature == nil {
				out[i].Signature = l.Signature
			}
		default:
			return out, fmt.Errorf("line %d: it is neither a head nor a signature", n)
		}
	}
	return out, nil
}
