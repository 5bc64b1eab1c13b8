package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// rotate begins a new segment where the current one is full. It is the writer's.
func (l *Log) rotate() error {
	l.mu.Lock()
	current := l.segments[len(l.segments)-1]
	room := l.space.used + l.space.admitted*maxRecord + l.space.reserve + maxHeader
	l.mu.Unlock()
	if l.at.offset < l.cfg.SegmentBytes || l.at.index < current.first {
		return nil
	}
	h := header{log: l.id, first: l.at.index + 1, prev: l.state.hash, created: l.cfg.Now().UTC(), server: l.cfg.Server}
	if h.created.Before(l.at.time) {
		h.created = l.at.time
	}
	if err := l.addHead(current.first, l.state); err != nil {
		return err
	}
	f, begin, err := createSegment(l.cfg.Dir, h)
	if err != nil {
		return err
	}
	// Before anything depends on it: admitted events must fit.
	promised := begin + room + step
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, promised); err != nil {
		if noRoom(err) {
			return errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
		promised = begin
	}
	old := l.file
	l.mu.Lock()
	l.file = f
	l.at.hash, l.at.offset = h.hash(), begin
	l.segments = append(l.segments, &segment{first: h.first, created: h.created, begin: begin, prev: h.prev, size: begin})
	l.space.move(f, begin)
	l.space.promised = promised
	l.mu.Unlock()
	return old.Close()
}

// retain removes the oldest segments that Config.MaxBytes or MaxAge do not leave room for. What is removed ends with a checkpoint
// that the signer has signed, so that the rest can be verified: without the signer nothing is removed.
func (l *Log) retain(ctx context.Context) {
	for ctx.Err() == nil {
		oldest, why := l.tooOld()
		if oldest == nil {
			return
		}
		if err := l.remove(ctx, oldest, why); err != nil {
			l.log.Warn("the oldest segment of the audit log is not removed yet", "segment", segmentName(oldest.first), "error", err)
			return
		}
	}
}

// tooOld returns the oldest segment where it is to go, and why.
func (l *Log) tooOld() (*segment, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) < 2 {
		return nil, ""
	}
	total := int64(0)
	for _, s := range l.segments {
		total += s.size
	}
	oldest := l.segments[0]
	switch {
	case total > l.cfg.MaxBytes:
		return oldest, fmt.Sprintf("all segments have %d bytes, %d are kept", total, l.cfg.MaxBytes)
	case l.cfg.MaxAge > 0 && l.cfg.Now().Sub(l.segments[1].created) > l.cfg.MaxAge:
		return oldest, fmt.Sprintf("its newest event is older than %s", l.cfg.MaxAge)
	}
	return nil, ""
}

func (l *Log) remove(ctx context.Context, oldest *segment, why string) error {
	l.mu.Lock()
	next := l.segments[1]
	l.mu.Unlock()
	head := []Head{l.newHead(kindCheckpoint, position{index: next.first - 1, hash: next.prev})}
	l.heads.signing.Lock()
	err := l.signHeads(ctx, head)
	l.heads.signing.Unlock()
	if err != nil {
		return fmt.Errorf("sign checkpoint: %w", err)
	}
	b, err := json.MarshalIndent(head[0], "", "  ")
	if err != nil {
		return err
	}
	if err := keys.WriteFile(filepath.Join(l.cfg.Dir, checkpointFile), append(b, '\n')); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	l.mu.Lock()
	l.segments = l.segments[1:]
	l.mu.Unlock()
	l.forgetPending(oldest.first)
	for _, name := range []string{segmentName(oldest.first), headsName(oldest.first)} {
		if err := os.Remove(filepath.Join(l.cfg.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // the checkpoint stands: Open does not miss it, and Verify skips it
		}
	}
	l.log.Info("oldest segment of the audit log removed", "segment", segmentName(oldest.first), "why", why)
	l.Note(Event{Action: "audit.retain", Resource: "audit", ResourceID: segmentName(oldest.first), User: systemUser, Result: ResultOK,
		Details: map[string]string{"last_index": strconv.FormatUint(next.first-1, 10), "why": why}})
	return nil
}

// forgetPending drops the heads of a segment that is gone.
func (l *Log) forgetPending(segment uint64) {
	l.heads.mu.Lock()
	defer l.heads.mu.Unlock()
	var kept []pendingHead
	for _, p := range l.heads.pending {
		if p.segment != segment {
			kept = append(kept, p)
		}
	}
	l.heads.pending = kept
}
