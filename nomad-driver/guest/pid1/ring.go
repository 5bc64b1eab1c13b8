package pid1

import "github.com/soulbox-dev/soulbox/nomad-driver/guest"

const (
	ringMax   = guest.RingBytes // a power of two
	ringFirst = 4 << 10
)

// ring keeps the last bytes of a stream, at most ringMax. Offsets count from the stream's first byte and never wrap. It
// allocates nothing before the first byte and grows by doubling. Its size is a power of two, so that the place of an offset
// is a mask away. Not safe for concurrent use.
type ring struct {
	buf   []byte
	start uint64 // offset of the oldest byte kept
	end   uint64 // offset behind the newest one
}

// space returns room for at least one and at most limit bytes behind the newest one, as one slice; commit tells how many were put
// there. Bytes from offset keep on are not given up for it; where that leaves no room it returns nil.
func (r *ring) space(limit int, keep uint64) []byte {
	if r.full(keep) {
		return nil
	}
	held := r.end - max(keep, r.start)
	for uint64(len(r.buf)) < ringMax && r.end-r.start == uint64(len(r.buf)) {
		r.resize(max(ringFirst, 2*len(r.buf)))
	}
	size := uint64(len(r.buf))
	at := r.end & (size - 1)
	n := min(size-at, size-held, uint64(limit))
	return r.buf[at : at+n]
}

// full tells that space would find no room.
func (r *ring) full(keep uint64) bool { return r.end-max(keep, r.start) >= ringMax }

// commit adds n bytes that were put into the slice of the last space call.
func (r *ring) commit(n int) {
	r.end += uint64(n)
	if size := uint64(len(r.buf)); r.end-r.start > size {
		r.start = r.end - size
	}
}

// read copies bytes from offset off on into p. off lies between start and end.
func (r *ring) read(p []byte, off uint64) int {
	n := 0
	for n < len(p) && off < r.end {
		at := off & uint64(len(r.buf)-1)
		k := copy(p[n:], r.buf[at:min(uint64(len(r.buf)), at+r.end-off)])
		n, off = n+k, off+uint64(k)
	}
	return n
}

// trim gives back what a stream that has ended does not need.
func (r *ring) trim() {
	held := int(r.end - r.start)
	if held == 0 {
		r.buf = nil
		return
	}
	size := 64
	for size < held {
		size *= 2
	}
	if size < len(r.buf) {
		r.resize(size)
	}
}

// clear forgets all bytes.
func (r *ring) clear() { r.buf, r.start = nil, r.end }

// resize moves the bytes to a buffer of size bytes, a power of two that holds them all.
func (r *ring) resize(size int) {
	buf := make([]byte, size)
	for off := r.start; off < r.end; {
		from := off & uint64(len(r.buf)-1)
		to := off & uint64(size-1)
		n := copy(buf[to:], r.buf[from:min(uint64(len(r.buf)), from+r.end-off)])
		off += uint64(n)
	}
	r.buf = buf
}
