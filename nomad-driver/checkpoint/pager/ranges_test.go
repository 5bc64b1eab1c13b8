package pager

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

// Ranges are what a map of single pages is, whatever is cut out of them and moved.
func TestRanges_areAMapOfPages(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var rs ranges
		model := map[uint64]uint64{} // page to offset
		for i := range uint64(20) {
			r := Range{Dst: i * 20 * pageSize, Len: (1 + rnd.Uint64N(20)) * pageSize, Off: i << 32}
			rs = append(rs, r)
			for o := uint64(0); o < r.Len; o += pageSize {
				model[r.Dst+o] = r.Off + o
			}
		}
		for range 30 {
			from, size := rnd.Uint64N(450)*pageSize, (1+rnd.Uint64N(60))*pageSize
			if rnd.Uint64N(2) == 0 {
				rs, _ = rs.cut(from, from+size)
				for a := from; a < from+size; a += pageSize {
					delete(model, a)
				}
			} else {
				to := rnd.Uint64N(450) * pageSize
				if to < from+size && from < to+size {
					continue // mremap(2) has no such
				}
				rs = rs.move(from, to, size)
				for o := uint64(0); o < size; o += pageSize {
					delete(model, to+o)
					if v, ok := model[from+o]; ok {
						model[to+o] = v
						delete(model, from+o)
					}
				}
			}
		}
		must.True(t, slices.IsSortedFunc(rs, func(a, b Range) int { return int(int64(a.Dst) - int64(b.Dst)) }))
		got := map[uint64]uint64{}
		for _, r := range rs {
			must.Positive(t, r.Len)
			for o := uint64(0); o < r.Len; o += pageSize {
				got[r.Dst+o] = r.Off + o
			}
		}
		must.Eq(t, model, got)
		for p := uint64(0); p < 600*pageSize; p += pageSize {
			_, want := model[p]
			must.Eq(t, want, rs.at(p+5) >= 0)
		}
	}
}
