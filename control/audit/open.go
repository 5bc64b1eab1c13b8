package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// DamageError means that a log is not what was written: events that a head vouches for are changed or missing.
type DamageError struct {
	Index   uint64 // of the first event that is not as it was
	Problem string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("event %d of the audit log is not as it was written: %s", e.Index, e.Problem)
}

// Open opens the log of a folder, or begins one. What a crash left of events that nobody was told are stored is cut off, kept aside,
// and noted. A log that lacks what a head vouches for is a *DamageError: whoever finds out why moves the folder away.
func Open(cfg Config) (l *Log, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("audit log %s: %w", cfg.Dir, err)
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	l = &Log{
		cfg: cfg, log: cfg.Logger, next: newBatch(), moved: make(chan struct{}), wake: make(chan struct{}, 1),
		space: space{reserve: cfg.Reserve},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.closeFiles())
			l = nil
		}
	}()
	if l.lock, err = os.OpenFile(filepath.Join(cfg.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return l, err
	}
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return l, fmt.Errorf("another process has it open: %w", err)
	}
	firsts, err := listSegments(cfg.Dir)
	if err != nil {
		return l, err
	}
	var torn *Event
	if len(firsts) == 0 {
		if _, err := os.Stat(filepath.Join(cfg.Dir, checkpointFile)); err == nil {
			return l, errors.New("there is a checkpoint, but no segment")
		}
		err = l.begin()
	} else {
		torn, err = l.resume(firsts)
	}
	if err != nil {
		return l, err
	}
	l.space.move(l.file, l.at.offset)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.wg.Go(l.write)
	l.wg.Go(func() { l.tend(ctx) })
	if torn != nil {
		l.Note(*torn)
	}
	return l, nil
}

func (l *Log) closeFiles() error {
	var errs []error
	for _, f := range []*os.File{l.file, l.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// begin starts a new chain.
func (l *Log) begin() error {
	l.id = newLogID()
	return l.newSegment(header{log: l.id, first: 1, created: l.cfg.Now().UTC(), server: l.cfg.Server})
}

// newSegment makes the segment that is written to from now on.
func (l *Log) newSegment(h header) error {
	f, begin, err := createSegment(l.cfg.Dir, h)
	if err != nil {
		return err
	}
	l.file = f
	l.at.hash, l.at.offset = h.hash(), begin
	l.segments = append(l.segments, &segment{first: h.first, created: h.created, begin: begin, prev: h.prev, size: begin})
	return nil
}

// resume goes on with a log. Only its last segment is read: to look at all of it is Verify's.
func (l *Log) resume(firsts []uint64) (torn *Event, err error) {
	for i, first := range firsts {
		path := filepath.Join(l.cfg.Dir, segmentName(first))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		h, begin, err := readHeader(f)
		st, serr := f.Stat()
		if err = errors.Join(err, serr); err == nil && h.first != first {
			err = fmt.Errorf("its header says that it begins with event %d", h.first)
		}
		if err == nil && i > 0 && h.log != l.id {
			err = errors.New("it is of another log")
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", segmentName(first), err), f.Close())
		}
		l.id = h.log
		seg := &segment{first: first, created: h.created, begin: begin, prev: h.prev, size: st.Size()}
		if i > 0 {
			l.segments[i-1].last = first - 1
		}
		l.segments = append(l.segments, seg)
		if err := l.loadHeads(first); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if i < len(firsts)-1 {
			if err := f.Close(); err != nil {
				return nil, err
			}
			continue
		}
		l.file = f
		l.at = position{index: first - 1, hash: h.hash(), offset: begin, time: h.created}
		l.state = position{index: first - 1, hash: h.prev, offset: begin, time: h.created}
		return l.readLast(seg, st.Size())
	}
	return nil, nil
}

// loadHeads notes a segment's heads, and which of them wait for a signature.
func (l *Log) loadHeads(first uint64) error {
	list, err := readHeads(l.headsPath(first))
	if err != nil {
		return fmt.Errorf("%s: %w", headsName(first), err)
	}
	for _, head := range list {
		l.heads.newest = max(l.heads.newest, head.Index)
		if head.Signature == nil {
			l.heads.pending = append(l.heads.pending, pendingHead{first, head})
			continue
		}
		l.heads.signed = &head
	}
	return nil
}

// readLast reads the segment that the log goes on in, up to the last event that is whole, and cuts off what follows.
func (l *Log) readLast(seg *segment, size int64) (*Event, error) {
	sc := newScanner(l.file, seg.begin, size)
	var problem error
	for {
		rec, err := sc.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			var sum Hash
			sum, l.scratch = chain(l.scratch, hashedEvent, l.at.hash, rec.body)
			switch {
			case sum != rec.hash:
				err = errors.New("its hash does not fit")
			case bodyIndex(rec.body) != l.at.index+1:
				err = fmt.Errorf("it says that it is event %d", bodyIndex(rec.body))
			}
		}
		if err != nil {
			problem = err
			break
		}
		l.at = position{index: l.at.index + 1, hash: rec.hash, offset: sc.offset, time: bodyTime(rec.body)}
		seg.note(l.at.index, rec.offset, l.at.time)
	}
	if l.at.index >= seg.first {
		l.state = l.at
		seg.last = l.at.index
	}
	seg.size = l.at.offset
	if newest := l.heads.newest; l.at.index < newest {
		if problem == nil {
			problem = errors.New("it is missing")
		}
		return nil, &DamageError{l.at.index + 1, fmt.Sprintf("%v, and the head of event %d vouches for it", problem, newest)}
	}
	if problem == nil {
		return nil, nil
	}
	return l.cutTorn(size, problem)
}

// cutTorn keeps aside what follows the last whole event, and cuts it off.
func (l *Log) cutTorn(size int64, problem error) (*Event, error) {
	name := fmt.Sprintf("torn-%020d-%d", l.at.index+1, l.cfg.Now().Unix())
	aside, err := os.OpenFile(filepath.Join(l.cfg.Dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(aside, io.NewSectionReader(l.file, l.at.offset, size-l.at.offset))
	if err = errors.Join(err, aside.Sync(), aside.Close()); err == nil {
		err = errors.Join(l.file.Truncate(l.at.offset), l.file.Sync(), syncDir(l.cfg.Dir))
	}
	if err != nil {
		return nil, fmt.Errorf("cut off what a crash left: %w", err)
	}
	l.log.Warn("the audit log ended in an event that was never whole; it is kept aside", "index", l.at.index+1, "file", name, "problem", problem)
	return &Event{Action: "audit.recover", Resource: "audit", ResourceID: name, User: systemUser, Result: ResultOK, Details: map[string]string{
		"bytes": strconv.FormatInt(size-l.at.offset, 10), "problem": problem.Error(),
	}}, nil
}
