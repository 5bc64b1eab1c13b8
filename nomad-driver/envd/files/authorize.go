package files

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// trusted is what the edge says of a request whose signature of the second kind it has checked. Clients cannot: the edge
// strips what they send of this name, and nobody else reaches a node.
const trusted = "Soulbox-Authorized"

// Authorize lets a request for /files in: by the sandbox's access token in X-Access-Token, by a signature made with it in the
// query, or because the edge says so. An empty token lets all in. It returns an *Error with status 401 otherwise.
func Authorize(r *http.Request, token string) error {
	if token == "" || same(r.Header.Get("X-Access-Token"), token) || r.Header.Get(trusted) == "files" {
		return nil
	}
	q := r.URL.Query()
	signature := q.Get("signature")
	if signature == "" {
		return fail(http.StatusUnauthorized, "missing signature query parameter")
	}
	operation := "read"
	if r.Method == http.MethodPost {
		operation = "write"
	}
	expiration := q.Get("signature_expiration")
	want := sign(q.Get("path"), operation, q.Get("username"), token, expiration)
	// A plus sign that was not escaped has become a space; there is none in a signature.
	if !same(strings.ReplaceAll(signature, " ", "+"), want) {
		return fail(http.StatusUnauthorized, "invalid signature")
	}
	if !q.Has("signature_expiration") || expiration == "" {
		return nil
	}
	until, err := strconv.ParseInt(expiration, 10, 64)
	if err != nil {
		return fail(http.StatusUnauthorized, "invalid signature")
	}
	if until < time.Now().Unix() {
		return fail(http.StatusUnauthorized, "signature is already expired")
	}
	return nil
}

// AuthorizeToken lets a request in by the access token alone.
func AuthorizeToken(r *http.Request, token string) error {
	if token == "" || same(r.Header.Get("X-Access-Token"), token) {
		return nil
	}
	return fail(http.StatusUnauthorized, "unauthorized access, please provide a valid access token")
}

// sign makes a signature of the first kind. expiration is the text of the query, in seconds since 1970; empty: none.
func sign(path, operation, username, token, expiration string) string {
	text := path + ":" + operation + ":" + username + ":" + token
	if expiration != "" {
		text += ":" + expiration
	}
	sum := sha256.Sum256([]byte(text))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// same compares in a time that does not depend on where the two differ, nor on how long the one from outside is.
func same(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}
