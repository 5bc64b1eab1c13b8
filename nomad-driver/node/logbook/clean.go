package logbook

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes a line of a program harmless for whoever shows it: escape sequences of terminals are taken out, other control
// characters and what is no UTF-8 show as the replacement character, tabs stay.
func Clean(s string) string {
	if plain(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); {
		if s[i] == 0x1b {
			i += escape(s[i:])
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case r == '\t':
			b.WriteRune(r)
		case r == '\r' || r == '\b':
			// A line that overwrote itself: what is left is not what was seen, but all of it.
		case r == utf8.RuneError && n == 1, unicode.IsControl(r), isFormat(r):
			b.WriteRune(utf8.RuneError)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c >= 0x7f {
			return false
		}
	}
	return true
}

// isFormat reports whether a character turns the direction of text, by which a line can be made to look like another.
func isFormat(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x2028 || r == 0x2029
}

// escape returns the length of the escape sequence that s begins with (ECMA-48): CSI up to its final byte, strings such as OSC
// up to their terminator, all others with what comes between and one more byte.
func escape(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	switch s[1] {
	case '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']', 'P', 'X', '^', '_':
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\' {
				return i + 2
			}
		}
		return len(s)
	}
	i := 1
	for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
		i++
	}
	return min(i+1, len(s))
}

// cleanFields does the same to the values of fields, which may come from a client or a sandbox as well.
func cleanFields(m map[string]string) map[string]string {
	dirty := false
	for k, v := range m {
		dirty = dirty || !plain(k) || !plain(v)
	}
	if !dirty {
		return m
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[Clean(k)] = Clean(v)
	}
	return out
}
