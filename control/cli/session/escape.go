package session

// escaper finds "<char>." at the start of a line among what is typed. "<char><char>" there is one char for the process.
type escaper struct {
	char    byte // 0: nothing is found
	midline bool // the last byte sent was not the end of a line
	pending bool // char was typed at the start of a line and is held back
}

// filter returns the bytes of p that are for the process, and whether the session is to end.
func (e *escaper) filter(p []byte) (out []byte, detach bool) {
	if e.char == 0 {
		return p, false
	}
	out = make([]byte, 0, len(p)+1)
	for _, c := range p {
		if e.pending {
			e.pending = false
			switch c {
			case '.':
				return out, true
			case e.char:
			default:
				out = append(out, e.char)
			}
			out = append(out, c)
			e.midline = c != '\r' && c != '\n'
			continue
		}
		if c == e.char && !e.midline {
			e.pending = true
			continue
		}
		out = append(out, c)
		e.midline = c != '\r' && c != '\n'
	}
	return out, false
}
