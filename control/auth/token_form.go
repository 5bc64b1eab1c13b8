package auth

import "strings"

// MaxToken bounds a key or a token, in bytes.
const MaxToken = 8 << 10

// looksLikeToken reports whether a secret has the form of a signed token: three words of base64 with dots between. A key has
// none.
func looksLikeToken(s string) bool { return strings.HasPrefix(s, "ey") && strings.Count(s, ".") == 2 }
