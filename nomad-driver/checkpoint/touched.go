package checkpoint

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
)

// Touched is which pages of a checkpoint its processes wanted first after a restore, in that order. The next restore of the same images brings them before
// the rest. It names places in images and is a matter of speed alone: what it names wrongly is passed over.
type Touched struct {
	Version int           `json:"version"`
	Files   []string      `json:"files"` // images of pages
	Pages   []TouchedPage `json:"pages"`
}

// TouchedPage is the number of one of Touched.Files, and that of a page in it.
type TouchedPage [2]uint32

const touchedVersion = 1

// MaxTouched bounds an encoded Touched, in bytes.
const MaxTouched = 1 << 20

// ParseTouched reads what Encode wrote, whoever has had it since.
func ParseTouched(b []byte) (*Touched, error) {
	var t Touched
	if len(b) > MaxTouched {
		return nil, fmt.Errorf("pages touched: %d bytes, at most %d", len(b), MaxTouched)
	}
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, fmt.Errorf("pages touched: %w", err)
	}
	if t.Version != touchedVersion || len(t.Pages) > pager.MaxTouched || len(t.Files) > maxPieces {
		return nil, fmt.Errorf("pages touched: version %d, %d pages, %d files: this node reads version %d, %d pages, %d files",
			t.Version, len(t.Pages), len(t.Files), touchedVersion, pager.MaxTouched, maxPieces)
	}
	for _, p := range t.Pages {
		if int(p[0]) >= len(t.Files) {
			return nil, fmt.Errorf("pages touched: file %d of %d", p[0], len(t.Files))
		}
	}
	return &t, nil
}

// Encode encodes it.
func (t *Touched) Encode() ([]byte, error) { return json.Marshal(t) }

// Add appends what more has that t has not, and returns how many pages that are. Either may be nil; the sum is not longer than one that ParseTouched takes.
func (t *Touched) Add(more *Touched) (sum *Touched, added int) {
	sum = &Touched{Version: touchedVersion}
	number := map[string]uint32{}
	seen := map[TouchedPage]bool{}
	for i, from := range []*Touched{t, more} {
		if from == nil {
			continue
		}
		for _, p := range from.Pages {
			name := from.Files[p[0]]
			n, ok := number[name]
			if !ok {
				n = uint32(len(sum.Files))
				number[name] = n
				sum.Files = append(sum.Files, name)
			}
			at := TouchedPage{n, p[1]}
			if seen[at] || len(sum.Pages) == pager.MaxTouched {
				continue
			}
			seen[at] = true
			sum.Pages = append(sum.Pages, at)
			added += i
		}
	}
	return sum, added
}

// order returns what of a plan comes first: each page that is named, with those around it, once.
func (t *Touched) order(plan *thin) (out []pager.First) {
	if t == nil {
		return nil
	}
	space := map[uint32]int{} // by number of a file
	for i, name := range t.Files {
		if j := slices.Index(plan.files, name); j >= 0 {
			space[uint32(i)] = slices.IndexFunc(plan.late, func(l late) bool { return l.file == j })
		}
	}
	type block struct {
		space int
		at    uint64
	}
	seen := map[block]bool{}
	for _, p := range t.Pages {
		i, ok := space[p[0]]
		if !ok || i < 0 {
			continue
		}
		off := uint64(p[1]) * pageSize
		// By where they are in the image they are in the same order as by address.
		at, found := slices.BinarySearchFunc(plan.late[i].ranges, off, func(r pager.Range, off uint64) int {
			switch {
			case r.Off+r.Len <= off:
				return -1
			case r.Off > off:
				return 1
			}
			return 0
		})
		if !found {
			continue
		}
		r := plan.late[i].ranges[at]
		from, size := pager.Around(r.Dst + off - r.Off)
		if b := (block{i, from}); !seen[b] && len(out) < pager.MaxTouched {
			seen[b] = true
			out = append(out, pager.First{Space: i, Dst: from, Len: size})
		}
	}
	return out
}
