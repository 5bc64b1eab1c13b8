package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// SignedLinkPrefix begins the signature of a link of ours: "v2.<version of the key>.<HMAC-SHA256, base64 for URLs>".
const SignedLinkPrefix = "v2."

// SignedLink is what a link of ours allows: one operation on one file of one sandbox, until a time. Whoever has a key can make one; the
// control service and the Vault plugin do.
type SignedLink struct {
	Sandbox   SandboxID
	Operation string // "read" or "write"
	Path      string
	User      string    // empty: the sandbox's default user
	Expires   time.Time // to the second
}

// Query returns the parameters of the link to /files, signed with a key and its version.
func (l SignedLink) Query(version uint32, secret []byte) url.Values {
	q := url.Values{
		"sandbox": {string(l.Sandbox)}, "path": {l.Path}, "signature_expiration": {strconv.FormatInt(l.Expires.Unix(), 10)},
		"signature": {fmt.Sprintf("%s%d.%s", SignedLinkPrefix, version, base64.RawURLEncoding.EncodeToString(l.mac(secret)))},
	}
	if l.User != "" {
		q.Set("username", l.User)
	}
	return q
}

// mac signs all fields, each with its length, so that no two links look alike.
func (l SignedLink) mac(secret []byte) []byte {
	m := hmac.New(sha256.New, secret)
	m.Write(l.Canonical())
	return m.Sum(nil)
}

// Canonical returns what is signed of l.
func (l SignedLink) Canonical() []byte {
	var b []byte
	for _, f := range []string{"soulbox file link", l.Operation, string(l.Sandbox), l.Path, l.User, strconv.FormatInt(l.Expires.Unix(), 10)} {
		b = fmt.Appendf(b, "%d:%s", len(f), f)
	}
	return b
}

// SignedBy reports whether mac is l's under a key.
func (l SignedLink) SignedBy(secret, mac []byte) bool { return hmac.Equal(mac, l.mac(secret)) }

// errNoLink does not say what is wrong with a link.
var errNoLink = errors.New("the link is not of the form that is signed here")

// ParseSignedLink reads the parameters of a link that is to be used for an operation. It checks their form: the signature, with the
// key of the version, and the time are for the caller.
func ParseSignedLink(q url.Values, operation string) (l SignedLink, version uint32, mac []byte, err error) {
	for _, name := range []string{"sandbox", "path", "signature", "signature_expiration", "username"} {
		if len(q[name]) > 1 || name != "username" && q.Get(name) == "" {
			return SignedLink{}, 0, nil, errNoLink
		}
	}
	id, err := ParseSandboxID(q.Get("sandbox"))
	if err != nil || string(id) != q.Get("sandbox") {
		return SignedLink{}, 0, nil, errNoLink
	}
	signature, own := strings.CutPrefix(q.Get("signature"), SignedLinkPrefix)
	number, code, ok := strings.Cut(signature, ".")
	v, verr := strconv.ParseUint(number, 10, 32)
	mac, merr := base64.RawURLEncoding.Strict().DecodeString(code)
	expires, eerr := strconv.ParseInt(q.Get("signature_expiration"), 10, 64)
	if !own || !ok || verr != nil || merr != nil || eerr != nil {
		return SignedLink{}, 0, nil, errNoLink
	}
	return SignedLink{Sandbox: id, Operation: operation, Path: q.Get("path"), User: q.Get("username"), Expires: time.Unix(expires, 0)}, uint32(v), mac, nil
}
