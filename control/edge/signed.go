package edge

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
)

// Link is what a link of ours allows: one operation on one file of one sandbox, until a time.
type Link = api.SignedLink

// Links makes and checks links of ours. A version that is revoked takes all
// of its links with it.
type Links struct {
	Ring keys.Ring
	Now  func() time.Time // nil: time.Now
}

var _ Verifier = Links{}

// Query returns the parameters of a link to /files, and the version of the key that signed it.
func (l Links) Query(k Link) (url.Values, keys.KeyVersion, error) {
	key, err := l.Ring.Current()
	if err != nil {
		return nil, 0, fmt.Errorf("sign a link: %w", err)
	}
	return k.Query(uint32(key.Version), key.Secret), key.Version, nil
}

// errLink is all that a client learns of a link that is no good.
var errLink = errors.New("the link is not valid")

// Verify implements Verifier.
func (l Links) Verify(r *http.Request) (api.SandboxID, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "", errLink
	}
	k, version, mac, err := api.ParseSignedLink(q, operation(r.Method))
	if err != nil {
		return "", errLink
	}
	key, err := l.Ring.Key(keys.KeyVersion(version))
	if errors.Is(err, keys.ErrKeyRevoked) {
		return "", errLink
	}
	if err != nil {
		return "", err
	}
	if !k.SignedBy(key.Secret, mac) {
		return "", errLink
	}
	now := time.Now
	if l.Now != nil {
		now = l.Now
	}
	if !now().Before(k.Expires) {
		return "", errors.New("the link has expired")
	}
	return k.Sandbox, nil
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
