package soulboxsecrets

import "strings"

// An API key has two spellings: sb_<16 digits of id>_<64 digits of secret> and e2b_<80 digits>.
const (
	idDigits     = 16
	secretDigits = 64
)

// keyID returns the id in a key, which is no secret, or "" where it is no key.
func keyID(key string) string {
	digits, ok := strings.CutPrefix(key, "e2b_")
	if !ok {
		rest, own := strings.CutPrefix(key, "sb_")
		if !own || len(rest) != idDigits+1+secretDigits || rest[idDigits] != '_' {
			return ""
		}
		digits = rest[:idDigits] + rest[idDigits+1:]
	}
	if len(digits) != idDigits+secretDigits || strings.Trim(digits, "0123456789abcdef") != "" {
		return ""
	}
	return digits[:idDigits]
}

// e2bSpelling returns a key as clients of the E2B contract want it.
func e2bSpelling(key string) string {
	id := keyID(key)
	if id == "" || strings.HasPrefix(key, "e2b_") {
		return key
	}
	return "e2b_" + id + key[len(key)-secretDigits:]
}
