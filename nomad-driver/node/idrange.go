package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Host ids that sandboxes may have: above what distributions give to services and to containers of users, below 2^31,
// which some tools take for negative numbers.
const (
	minIDBase = sandbox.IDRange
	maxIDBase = 1<<31 - sandbox.IDRange
)

var errNoIDRange = errors.New("every range of host ids is in use")

// idRanges hands out ranges of sandbox.IDRange host ids. A range that is given back comes round last, so that a stray
// file or process of its old owner does not meet a new one soon.
type idRanges struct {
	mu    sync.Mutex
	base  uint32
	slots int
	next  int          // where the search for a free one starts
	taken map[int]bool // by slot
	fixed map[int]bool // by slot: reserved by the machine's own configuration
}

// span is a range of ids [from, to).
type span struct{ from, to uint64 }

// newIDRanges returns an allocator from base up that keeps clear of the spans in avoid.
func newIDRanges(base uint32, avoid []span) *idRanges {
	r := &idRanges{base: base, slots: int((maxIDBase-base)/sandbox.IDRange) + 1, taken: map[int]bool{}, fixed: map[int]bool{}}
	for _, s := range avoid {
		if s.to <= uint64(base) || s.from >= s.to {
			continue
		}
		from := 0
		if s.from > uint64(base) {
			from = int((s.from - uint64(base)) / sandbox.IDRange)
		}
		to := (s.to - uint64(base) + sandbox.IDRange - 1) / sandbox.IDRange
		for i := from; i < r.slots && uint64(i) < to; i++ {
			r.fixed[i] = true
		}
	}
	return r
}

// take returns the first id of a free range.
func (r *idRanges) take() (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.slots {
		i := (r.next + n) % r.slots
		if r.taken[i] || r.fixed[i] {
			continue
		}
		r.taken[i] = true
		r.next = (i + 1) % r.slots
		return r.base + uint32(i)*sandbox.IDRange, nil
	}
	return 0, errNoIDRange
}

// reserve marks a range that a sandbox of an earlier daemon has. It may lie anywhere: the configuration may have changed.
// A range that overlaps two slots takes both.
func (r *idRanges) reserve(base uint32) {
	r.each(base, func(i int) {
		r.taken[i] = true
		r.next = max(r.next, (i+1)%r.slots)
	})
}

// free gives a range back. Call it when the last process that had its ids is reaped and its files are gone.
func (r *idRanges) free(base uint32) { r.each(base, func(i int) { delete(r.taken, i) }) }

// held returns how many ranges sandboxes have.
func (r *idRanges) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.taken)
}

func (r *idRanges) each(base uint32, do func(slot int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := int64(base) - int64(r.base)
	for _, id := range []int64{first, first + sandbox.IDRange - 1} {
		if i := int(id / sandbox.IDRange); id >= 0 && i < r.slots {
			do(i)
		}
	}
}

// subordinateIDs returns the ranges that /etc/subuid and /etc/subgid (or other files of that form) give to users.
func subordinateIDs(paths ...string) ([]span, error) {
	var all []span
	for _, p := range paths {
		f, err := os.Open(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("subordinate ids: %w", err)
		}
		spans, err := parseSubordinateIDs(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("subordinate ids: %s: %w", p, err)
		}
		all = append(all, spans...)
	}
	return all, nil
}

// parseSubordinateIDs reads lines "name:first:count". It skips, as the tools that read such files do, what it does not
// understand.
func parseSubordinateIDs(r io.Reader) ([]span, error) {
	var spans []span
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) != 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		first, err1 := strconv.ParseUint(f[1], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 == nil && err2 == nil && count > 0 {
			spans = append(spans, span{first, first + count})
		}
	}
	return spans, sc.Err()
}
