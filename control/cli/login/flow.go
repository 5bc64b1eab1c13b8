// Package login logs people in at an issuer of OpenID Connect, and keeps what the issuer gave them.
//
// It owns the authorization code flow with PKCE over a callback on this machine, the file with the logins, and their renewal. What the
// service gets afterwards is the issuer's ID token as it is: the service checks it for itself and keeps nothing of a login, so a person's
// rights are those that the issuer and the service's roles give at each request, and they end with the token. It never sees a password,
// and sends a token to no other service than the one that the login was for.
package login

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/cap/oidc"
)

const (
	// CallbackPath is where the issuer sends the browser back to, on 127.0.0.1.
	CallbackPath = "/oidc/callback"
	// DefaultWait is how long somebody may take at the issuer.
	DefaultWait = 5 * time.Minute

	issuerTimeout = 10 * time.Second
)

// algorithms are those that the service accepts tokens with.
var algorithms = []oidc.Alg{oidc.EdDSA, oidc.ES256, oidc.RS256}

// Config of a login.
type Config struct {
	Issuer   string
	ClientID string   // of a public client: what is on everybody's machine keeps no secret
	Scopes   []string // beside openid
	Port     int      // of the callback; 0: any. Issuers that compare it need a fixed one
	Wait     time.Duration
	// Show is given the URL that the person has to open. It must not wait for the person. Required.
	Show func(url string) error
}

// Run logs a person in and returns what the issuer gave, which is verified: signature, issuer, audience, expiry and nonce.
func Run(ctx context.Context, cfg Config) (Login, error) {
	if cfg.Wait <= 0 {
		cfg.Wait = DefaultWait
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Wait)
	defer cancel()
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port)))
	if err != nil {
		return Login{}, fmt.Errorf("callback: %w", err)
	}
	defer listener.Close()
	back := "http://" + listener.Addr().String() + CallbackPath
	provider, err := cfg.provider(back)
	if err != nil {
		return Login{}, err
	}
	defer provider.Done()
	verifier, err := oidc.NewCodeVerifier()
	if err != nil {
		return Login{}, fmt.Errorf("login: %w", err)
	}
	request, err := oidc.NewRequest(cfg.Wait, back, oidc.WithPKCE(verifier))
	if err != nil {
		return Login{}, fmt.Errorf("login: %w", err)
	}
	at, err := provider.AuthURL(ctx, request)
	if err != nil {
		return Login{}, fmt.Errorf("issuer %s: %w", cfg.Issuer, err)
	}
	if u, err := url.Parse(at); err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return Login{}, fmt.Errorf("issuer %s: its address to log in at is no URL of the web", cfg.Issuer)
	}
	w := &waiter{provider: provider, request: request, done: make(chan outcome, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+CallbackPath, func(rw http.ResponseWriter, r *http.Request) { w.answer(ctx, rw, r) })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(listener) })
	defer wg.Wait()
	defer shutdown(ctx, srv)
	if err := cfg.Show(at); err != nil {
		return Login{}, err
	}
	select {
	case got := <-w.done:
		if got.err != nil {
			return Login{}, fmt.Errorf("issuer %s: %w", cfg.Issuer, got.err)
		}
		return newLogin(cfg, got.token)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return Login{}, fmt.Errorf("nobody has logged in at %s within %s", cfg.Issuer, cfg.Wait)
		}
		return Login{}, ctx.Err()
	}
}

// shutdown lets the browser have its last page.
func shutdown(ctx context.Context, srv *http.Server) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(ctx) != nil {
		_ = srv.Close()
	}
}

func (cfg Config) provider(back string) (*oidc.Provider, error) {
	conf, err := oidc.NewConfig(cfg.Issuer, cfg.ClientID, "", algorithms, []string{back}, oidc.WithScopes(cfg.Scopes...), oidc.WithRoundTripper(transport()))
	if err != nil {
		return nil, fmt.Errorf("issuer %.200q: %w", cfg.Issuer, err)
	}
	p, err := oidc.NewProvider(conf)
	if err != nil {
		return nil, fmt.Errorf("issuer %s: %w", cfg.Issuer, err)
	}
	return p, nil
}

// transport reaches an issuer that may not answer.
func transport() *http.Transport {
	d := &net.Dialer{Timeout: issuerTimeout}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: d.DialContext, TLSHandshakeTimeout: issuerTimeout, ResponseHeaderTimeout: issuerTimeout,
		DisableKeepAlives: true,
	}
}

// outcome is how a login ended.
type outcome struct {
	token oidc.Token
	err   error
}

// waiter waits for the one answer to a request. Answers to others, which any page in the person's browser can send here, change
// nothing, and the one counts once.
type waiter struct {
	provider *oidc.Provider
	request  oidc.Request
	done     chan outcome // has room for the one

	mu   sync.Mutex
	used bool
}

// answer serves the callback. ctx is the login's: a browser that does not wait ends nothing.
func (w *waiter) answer(ctx context.Context, rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	state := q.Get("state")
	if !w.take(state) {
		page(rw, http.StatusBadRequest, "This is not an answer that anybody waits for.")
		return
	}
	var got outcome
	if refused := q.Get("error"); refused != "" {
		if more := q.Get("error_description"); more != "" {
			refused += ": " + more
		}
		got.err = fmt.Errorf("the login was refused: %.500s", refused)
	} else {
		got.token, got.err = w.provider.Exchange(ctx, w.request, state, q.Get("code"))
	}
	if got.err != nil {
		page(rw, http.StatusBadRequest, "You are not logged in. Your terminal says why.")
	} else {
		page(rw, http.StatusOK, "You are logged in. You can close this window and go back to your terminal.")
	}
	w.done <- got
}

func (w *waiter) take(state string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.used || state != w.request.State() {
		return false
	}
	w.used = true
	return true
}

func page(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, "<!doctype html><title>SoulBox</title><p>%s</p>\n", text)
}
