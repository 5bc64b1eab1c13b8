package forward

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"net/http"
)

// Headers of requests between servers. They are believed on connections of servers alone, whose certificates say that they are: Receive is
// nowhere else. What a client sends by these names is replaced.
const (
	sourceHeader      = "Soulbox-Server-Source"      // the client's address and port
	tlsHeader         = "Soulbox-Server-Tls"         // present: the client came over TLS
	certificateHeader = "Soulbox-Server-Certificate" // one for each certificate that he showed then, in base64
	idempotencyHeader = "Soulbox-Server-Idempotency" // his Idempotency-Key, which net/http's client would take for leave to send again

	wordHeader      = "Soulbox-Server-Word"      // of this request, which what answers in a sandbox does not learn
	elsewhereHeader = "Soulbox-Server-Elsewhere" // of an answer, with the word: this server does not lead, nothing was done
)

const keyHeader = "Idempotency-Key"

// MaxHeaderBytes is how long the header of a request between servers may be, for a client's of 64 KiB: his certificates are in it.
const MaxHeaderBytes = 512 << 10

// introduce says in h who the client of r is, and the word for an answer that is the server's own.
func introduce(h http.Header, r *http.Request, word string) {
	for _, name := range []string{tlsHeader, certificateHeader, idempotencyHeader} {
		h.Del(name)
	}
	h.Set(sourceHeader, r.RemoteAddr)
	h.Set(wordHeader, word)
	if r.TLS != nil {
		h.Set(tlsHeader, "true")
		for _, c := range r.TLS.PeerCertificates {
			h.Add(certificateHeader, base64.StdEncoding.EncodeToString(c.Raw))
		}
	}
	if keys := h.Values(keyHeader); keys != nil {
		h[idempotencyHeader] = keys
		h.Del(keyHeader)
	}
}

type receivedKey struct{}

// received returns the word of a request that another server sent, or "".
func received(r *http.Request) string {
	word, _ := r.Context().Value(receivedKey{}).(string)
	return word
}

// Receive serves the requests that other servers send, as their clients' own, with next. One without a word is of the server itself: those of clients have one, whatever
// they say. It is for connections of servers only.
func (f *Forwarder) Receive(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(wordHeader) == "" {
			f.servers.Called(w, r)
			return
		}
		r, err := meet(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// meet returns a request as the other server saw it.
func meet(r *http.Request) (*http.Request, error) {
	h := r.Header
	word := h.Get(wordHeader)
	if word == "" {
		return nil, errors.New("the request comes from no server: it has no " + wordHeader)
	}
	r = r.WithContext(context.WithValue(r.Context(), receivedKey{}, word))
	r.RemoteAddr, r.TLS = h.Get(sourceHeader), nil
	if h.Get(tlsHeader) != "" {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true}
		for _, text := range h.Values(certificateHeader) {
			der, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return nil, err
			}
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, err
			}
			r.TLS.PeerCertificates = append(r.TLS.PeerCertificates, c)
		}
	}
	if keys := h.Values(idempotencyHeader); keys != nil {
		h[keyHeader] = keys
	}
	for _, name := range []string{sourceHeader, wordHeader, tlsHeader, certificateHeader, idempotencyHeader} {
		h.Del(name)
	}
	return r, nil
}
