package edge

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Verifier checks links of our own making.
type Verifier interface {
	// Verify returns the sandbox that a request's link is for, or an error for the client. It answers from memory.
	Verify(r *http.Request) (api.SandboxID, error)
}

// linkPrefix begins the signature of a link of ours; the contract's begin with "v1_".
const linkPrefix = api.SignedLinkPrefix

// denial is a link that is no good, with the status and the words for it.
type denial struct {
	status  int
	message string
}

func (d *denial) Error() string { return d.message }

type checkedKey struct{}

func linkChecked(ctx context.Context) bool { return ctx.Value(checkedKey{}) != nil }

// checkLink checks a link of ours that was sent to a sandbox's own name. The contract's links are checked by envd.
func (e *Edge) checkLink(r *http.Request, box Sandbox) error {
	if r.URL.Path != "/files" || !strings.HasPrefix(r.URL.Query().Get("signature"), linkPrefix) {
		return nil
	}
	id, err := e.verify(r)
	if err == nil && id != box.ID {
		err = &denial{http.StatusForbidden, "the link is for another sandbox"}
	}
	return err
}

// knownToEnvd reports whether envd would let a request in: by the sandbox's token, or by a signature. Envd itself cannot be asked before it
// runs.
func (e *Edge) knownToEnvd(r *http.Request, box Sandbox) bool {
	if box.EnvdToken == "" || sameToken(r.Header.Get(envdHeader), box.EnvdToken) {
		return true
	}
	q := r.URL.Query()
	signature := q.Get("signature")
	switch {
	case signature == "" || r.URL.Path != "/files":
		return false
	case strings.HasPrefix(signature, linkPrefix):
		return e.checkLink(r, box) == nil
	}
	return sameToken(signature, Sign(box.EnvdToken, q.Get("path"), operation(r.Method), q.Get("username"), q.Get("signature_expiration")))
}

// envdHeader carries the token that envd asks for.
const envdHeader = "X-Access-Token"

func (e *Edge) verify(r *http.Request) (api.SandboxID, error) {
	if e.cfg.Links == nil {
		return "", &denial{http.StatusForbidden, "links of this kind are not served here"}
	}
	id, err := e.cfg.Links.Verify(r)
	if api.StatusOf(err) == http.StatusServiceUnavailable { // the keys are out of reach: nobody knows whether the link is good
		return "", &denial{http.StatusServiceUnavailable, err.Error()}
	}
	if err != nil {
		return "", &denial{http.StatusForbidden, err.Error()}
	}
	*r = *r.WithContext(context.WithValue(r.Context(), checkedKey{}, true))
	return id, nil
}

// bySignature returns the sandbox that a link was made for. A link of the contract does not name it: it is the one whose token
// made the signature, so all that run are tried, once.
func (e *Edge) bySignature(r *http.Request) (Sandbox, error) {
	q := r.URL.Query()
	signature := q.Get("signature")
	if strings.HasPrefix(signature, linkPrefix) {
		id, err := e.verify(r)
		if err != nil {
			return Sandbox{}, err
		}
		return e.cfg.Sandboxes.Find(id)
	}
	expires := ""
	if q.Has("signature_expiration") {
		expires = q.Get("signature_expiration")
		if n, err := strconv.ParseInt(expires, 10, 64); err != nil || n < time.Now().Unix() {
			return Sandbox{}, &denial{http.StatusUnauthorized, "signature is already expired"}
		}
	}
	var found api.SandboxID
	e.cfg.Sandboxes.Each(func(s Sandbox) bool {
		if sameToken(signature, Sign(s.EnvdToken, q.Get("path"), operation(r.Method), q.Get("username"), expires)) {
			found = s.ID
		}
		return found == ""
	})
	if found == "" {
		return Sandbox{}, &denial{http.StatusUnauthorized, "invalid signature"}
	}
	return e.cfg.Sandboxes.Find(found)
}

// Sign returns the contract's signature of a file link: operation is "read" or "write", expires the Unix time in seconds, or
// empty.
func Sign(token, path, operation, username, expires string) string {
	text := path + ":" + operation + ":" + username + ":" + token
	if expires != "" {
		text += ":" + expires
	}
	sum := sha256.Sum256([]byte(text))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}
