package edge

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// Link is what a link of ours allows: one operation on one file of one sandbox, until a time.
type Link struct {
	Sandbox   api.SandboxID
	Operation string // "read" or "write"
	Path      string
	User      string    // empty: the sandbox's default user
	Expires   time.Time // to the second
}

// Links makes and checks links of ours: "v2.<version of the key>.<HMAC-SHA256, base64 for URLs>". A version that is revoked takes all
// of its links with it.
type Links struct {
	Ring keys.Ring
	Now  func() time.Time // nil: time.Now
}

var _ Verifier = Links{}

// Query returns the parameters of a link to /files, and the version of the key that signed it.
func (l Links) Query(k Link) (url.Values, keys.KeyVersion) {
	key := l.Ring.Current()
	q := url.Values{
		"sandbox": {string(k.Sandbox)}, "path": {k.Path}, "signature_expiration": {strconv.FormatInt(k.Expires.Unix(), 10)},
		"signature": {fmt.Sprintf("%s%d.%s", linkPrefix, key.Version, base64.RawURLEncoding.EncodeToString(k.mac(key)))},
	}
	if k.User != "" {
		q.Set("username", k.User)
	}
	return q, key.Version
}

// mac signs all fields, each with its length, so that no two links look alike.
func (k Link) mac(key keys.MACKey) []byte {
	m := hmac.New(sha256.New, key.Secret)
	for _, f := range []string{"soulbox file link", k.Operation, string(k.Sandbox), k.Path, k.User, strconv.FormatInt(k.Expires.Unix(), 10)} {
		fmt.Fprintf(m, "%d:%s", len(f), f)
	}
	return m.Sum(nil)
}

// errLink is all that a client learns of a link that is no good.
var errLink = errors.New("the link is not valid")

// Verify implements Verifier.
func (l Links) Verify(r *http.Request) (api.SandboxID, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", errLink
	}
	for _, name := range []string{"sandbox", "path", "signature", "signature_expiration", "username"} {
		if len(q[name]) > 1 || name != "username" && q.Get(name) == "" {
			return "", errLink
		}
	}
	id, err := api.ParseSandboxID(q.Get("sandbox"))
	if err != nil || string(id) != q.Get("sandbox") {
		return "", errLink
	}
	version, mac, ok := strings.Cut(strings.TrimPrefix(q.Get("signature"), linkPrefix), ".")
	v, verr := strconv.ParseUint(version, 10, 32)
	got, merr := base64.RawURLEncoding.Strict().DecodeString(mac)
	expires, eerr := strconv.ParseInt(q.Get("signature_expiration"), 10, 64)
	if !ok || verr != nil || merr != nil || eerr != nil {
		return "", errLink
	}
	key, err := l.Ring.Key(keys.KeyVersion(v))
	if err != nil {
		return "", errLink
	}
	k := Link{Sandbox: id, Operation: operation(r.Method), Path: q.Get("path"), User: q.Get("username"), Expires: time.Unix(expires, 0)}
	if !hmac.Equal(got, k.mac(key)) {
		return "", errLink
	}
	now := time.Now
	if l.Now != nil {
		now = l.Now
	}
	if !now().Before(k.Expires) {
		return "", errors.New("the link has expired")
	}
	return id, nil
}

// operation is what a method does to a file.
func operation(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead:
		return "read"
	case http.MethodPost:
		return "write"
	}
	return ""
}
