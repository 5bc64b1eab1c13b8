package pager

import "slices"

// ranges are sorted by Dst, and none overlaps another.
type ranges []Range

// at returns the index of the range that has the address, or -1.
func (rs ranges) at(addr uint64) int {
	i, found := slices.BinarySearchFunc(rs, addr, func(r Range, a uint64) int {
		switch {
		case r.end() <= a:
			return -1
		case r.Dst > a:
			return 1
		}
		return 0
	})
	if !found {
		return -1
	}
	return i
}

// from returns the index of the first range that ends behind the address, or how many there are.
func (rs ranges) from(addr uint64) int {
	i, _ := slices.BinarySearchFunc(rs, addr, func(r Range, a uint64) int {
		if r.end() <= a {
			return -1
		}
		return 1
	})
	return i
}

// cut returns rs without what is between from and to, and that.
func (rs ranges) cut(from, to uint64) (rest, out ranges) {
	first := rs.from(from)
	last := first
	var keep ranges
	for ; last < len(rs) && rs[last].Dst < to; last++ {
		r := rs[last]
		if r.Dst < from {
			keep = append(keep, Range{Dst: r.Dst, Len: from - r.Dst, Off: r.Off, File: r.File})
		}
		a, b := max(r.Dst, from), min(r.end(), to)
		out = append(out, Range{Dst: a, Len: b - a, Off: r.Off + a - r.Dst, File: r.File})
		if r.end() > to {
			keep = append(keep, Range{Dst: to, Len: r.end() - to, Off: r.Off + to - r.Dst, File: r.File})
		}
	}
	if last == first {
		return rs, nil
	}
	return slices.Replace(rs, first, last, keep...), out
}

// add returns rs with more ranges, where it has none.
func (rs ranges) add(more ranges) ranges {
	rs = append(rs, more...)
	slices.SortFunc(rs, func(a, b Range) int {
		if a.Dst < b.Dst {
			return -1
		}
		return 1
	})
	return rs
}

// move returns rs with what was between from and from+size at to.
func (rs ranges) move(from, to, size uint64) ranges {
	rs, out := rs.cut(from, from+size)
	for i := range out {
		out[i].Dst = out[i].Dst - from + to
	}
	rs, _ = rs.cut(to, to+size) // what was there is gone
	return rs.add(out)
}
