package logbook

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"
)

// part is one file of a book as it was when it was looked at.
type part struct {
	f    *os.File
	size int64
	gen  int64
}

// sight is a book as it was at one moment. It is read without the book's lock.
type sight struct {
	files   []part // the older one first
	gen     int64
	changed <-chan struct{}
}

func (s sight) close() {
	for _, p := range s.files {
		_ = p.f.Close() // only read
	}
}

// look opens the files that there are, from one on. The book's lock is held.
func (k *book) look(from int64) (sight, error) {
	s := sight{gen: k.gen, changed: k.changed}
	for _, c := range []part{{gen: k.gen - 1}, {gen: k.gen}} {
		if c.gen < from {
			continue
		}
		path := k.path
		if c.gen != k.gen {
			path += older
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			s.close()
			return sight{}, err
		}
		c.f = f
		s.files = append(s.files, c)
		st, err := f.Stat()
		if err != nil {
			s.close()
			return sight{}, err
		}
		s.files[len(s.files)-1].size = st.Size()
	}
	return s, nil
}

const everything = -1 // as the first file that is looked at

const (
	scanBlock   = 64 << 10
	searchRange = 128 << 10 // longer than two lines can be
)

var timeKey = []byte(`{"time":"`)

// timeOf reads the time of a line without the rest of it; false where the line is none.
func timeOf(line []byte) (time.Time, bool) {
	rest, ok := bytes.CutPrefix(line, timeKey)
	if !ok {
		return time.Time{}, false
	}
	i := bytes.IndexByte(rest, '"')
	if i < 0 {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(rest[:i]))
	return t, err == nil
}

// forward calls f with the whole lines between two places in a file and with where each ends, until f returns false.
func forward(r io.ReaderAt, from, to int64, f func(line []byte, end int64) bool) error {
	in := bufio.NewReaderSize(io.NewSectionReader(r, from, to-from), scanBlock)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what came without its end is not there yet, or was cut off
		}
		if err != nil {
			return err
		}
		if from += int64(len(line)); !f(line, from) {
			return nil
		}
	}
}

// backward calls f with the whole lines before a place in a file, the last one first, until f returns false.
func backward(r io.ReaderAt, to int64, f func(line []byte) bool) error {
	var rest []byte // the end of a line whose beginning is before it
	for first := true; to > 0; {
		n := min(to, scanBlock)
		block := make([]byte, int(n), int(n)+len(rest))
		if _, err := r.ReadAt(block, to-n); err != nil {
			return err
		}
		to -= n
		block = append(block, rest...)
		if first {
			block = block[:bytes.LastIndexByte(block, '\n')+1]
			if first = len(block) == 0; first {
				continue // nothing but what was cut off
			}
		}
		for len(block) > 0 {
			i := bytes.LastIndexByte(block[:len(block)-1], '\n')
			if i < 0 && to > 0 {
				break
			}
			if !f(block[i+1:]) {
				return nil
			}
			block = block[:i+1]
		}
		rest = block
	}
	return nil
}

// search narrows down where the first line is whose time is late: no line that begins before lo has such a time, every one that
// begins at hi or later has.
func search(r io.ReaderAt, size int64, late func(time.Time) bool) (lo, hi int64, err error) {
	buf := make([]byte, searchRange)
	for lo, hi = 0, size; hi-lo > searchRange; {
		mid := lo + (hi-lo)/2
		n, err := r.ReadAt(buf[:min(int64(len(buf)), hi-mid)], mid)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		at, start, ok := firstTime(buf[:n])
		if !ok {
			return lo, hi, nil // no whole line there: the rest is for whoever reads the lines
		}
		if start += mid; late(at) {
			hi = start
		} else {
			lo = start
		}
	}
	return lo, hi, nil
}

// firstTime finds the first line that begins in b behind a line's end, and has a time.
func firstTime(b []byte) (at time.Time, start int64, ok bool) {
	for pos := 0; ; {
		i := bytes.IndexByte(b[pos:], '\n')
		if i < 0 {
			return time.Time{}, 0, false
		}
		pos += i + 1
		if at, ok = timeOf(b[pos:]); ok {
			return at, int64(pos), true
		}
	}
}
