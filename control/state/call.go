package state

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	autopilot "github.com/hashicorp/raft-autopilot"
)

// What servers ask each other for themselves, beside the requests of clients that they pass on. Both come over connections whose other end has shown a server's certificate.
const (
	joinPath  = "/raft/join"  // POST: let me in
	statsPath = "/raft/stats" // GET: how far is your log
	quietPath = "/edge/quiet" // POST: wait until no request to a sandbox is under way

	joinTime    = 10 * time.Second
	maxCallBody = 16 << 10
)

type joinRequest struct {
	ID    string `json:"id"`
	Addr  string `json:"address"`
	Fresh bool   `json:"fresh"`
	// Cluster is whose state it has; empty: none, or one of before there were ids.
	Cluster string `json:"cluster,omitempty"`
}

// callFailed is the answer to a call that was refused.
type callFailed struct {
	Message string `json:"message"`
	Leader  string `json:"leader,omitempty"` // whom to ask instead
}

type statsAnswer struct {
	ID            string  `json:"id"`
	LastContactMs float64 `json:"last_contact_ms"` // -1: it has heard from nobody that leads
	LastTerm      uint64  `json:"last_term"`
	LastIndex     uint64  `json:"last_index"`
	Tables        uint64  `json:"tables"` // index of the last entry that changed its tables
	Cluster       string  `json:"cluster,omitempty"`
}

type peerKey struct{}

// ConnContext keeps in ctx which certificate was shown on a connection of Requests, for Called.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if sorted, ok := c.(*sortedConn); ok {
		if t, ok := sorted.Conn.(*tls.Conn); ok {
			if shown := t.ConnectionState().PeerCertificates; len(shown) > 0 {
				return context.WithValue(ctx, peerKey{}, shown[0])
			}
		}
	}
	return ctx
}

// Called answers what another server asks for itself. It is for connections of Requests only.
func (s *Server) Called(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPost && r.URL.Path == joinPath:
		s.answerJoin(w, r)
	case r.Method == http.MethodPost && r.URL.Path == quietPath:
		s.answerQuiet(w, r)
	case r.Method == http.MethodGet && r.URL.Path == statsPath:
		st := s.ownStats()
		ms := float64(st.LastContact.Microseconds()) / 1000
		if st.LastContact < 0 {
			ms = -1
		}
		answer(w, http.StatusOK, statsAnswer{ID: s.cfg.ServerID, LastContactMs: ms, LastTerm: st.LastTerm, LastIndex: st.LastIndex, Tables: s.Index(), Cluster: s.known.get()})
	default:
		answer(w, http.StatusNotFound, callFailed{Message: fmt.Sprintf("%s %.100q is nothing that servers ask each other", r.Method, r.URL.Path)})
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the other end may be gone
}

func (s *Server) answerJoin(w http.ResponseWriter, r *http.Request) {
	var req joinRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, maxCallBody)).Decode(&req); err != nil {
		answer(w, http.StatusBadRequest, callFailed{Message: "the request to join: " + err.Error()})
		return
	}
	if err := s.mayJoin(r.Context(), req); err != nil {
		s.log.Warn("a server was not let in", "server", fmt.Sprintf("%.80q", req.ID), "address", fmt.Sprintf("%.80q", req.Addr), "error", err)
		answer(w, http.StatusForbidden, callFailed{Message: err.Error()})
		return
	}
	err := s.AddServer(r.Context(), req.ID, req.Addr, req.Fresh)
	switch {
	case err == nil:
		answer(w, http.StatusOK, struct{}{})
	case errors.Is(err, ErrNoLeader) || errors.Is(err, ErrUnknownOutcome):
		lead, _ := s.Leadership()
		if lead.ID == s.cfg.ServerID {
			lead.Addr = ""
		}
		answer(w, http.StatusServiceUnavailable, callFailed{Message: err.Error(), Leader: lead.Addr})
	default:
		s.log.Warn("a server was not let in", "server", req.ID, "address", req.Addr, "error", err)
		answer(w, http.StatusConflict, callFailed{Message: err.Error()})
	}
}

// mayJoin returns why a server may not be called as it says.
func (s *Server) mayJoin(ctx context.Context, req joinRequest) error {
	if req.ID == "" || len(req.ID) > 64 {
		return fmt.Errorf("%w: its id has not 1 to 64 characters", errJoin)
	}
	if err := differs(req.Cluster, "server "+req.ID, s.known.get(), "server "+s.cfg.ServerID+", which it asks,"); err != nil {
		return fmt.Errorf("%w: %w", errJoin, err)
	}
	host, port, err := net.SplitHostPort(req.Addr)
	if ip := net.ParseIP(host); err != nil || host == "" || port == "" || len(req.Addr) > 300 || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("%w: %.80q is no address at which others reach it", errJoin, req.Addr)
	}
	if s.cfg.TLS == nil || s.cfg.TLS.Name == nil {
		return nil
	}
	shown, ok := ctx.Value(peerKey{}).(*x509.Certificate)
	if !ok {
		return fmt.Errorf("%w: it has shown no certificate", errJoin)
	}
	name, err := s.cfg.TLS.Name(shown)
	if err != nil {
		return fmt.Errorf("%w: %w", errJoin, err)
	}
	if name != req.ID {
		return fmt.Errorf("%w: its certificate is of server %s, not of %.80s", errJoin, name, req.ID)
	}
	return nil
}

// ownStats is how far this server's log is.
func (s *Server) ownStats() autopilot.ServerStats {
	st := autopilot.ServerStats{LastIndex: s.raft.LastIndex()}
	st.LastTerm, _ = strconv.ParseUint(s.raft.Stats()["last_log_term"], 10, 64)
	if s.Leads() {
		return st
	}
	if at := s.raft.LastContact(); at.IsZero() {
		st.LastContact = -1
	} else {
		st.LastContact = time.Since(at)
	}
	return st
}

// newAsking returns the connections of calls to other servers.
func (s *Server) newAsking() *http.Transport {
	return &http.Transport{
		DialContext:        func(ctx context.Context, _, addr string) (net.Conn, error) { return s.streams.dialRequests(ctx, addr) },
		DisableCompression: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
	}
}

// call asks the server at addr. An answer that is no success is an error with its words, and leader is whom to ask instead, where the answer said so.
func (s *Server) call(ctx context.Context, method, addr, path string, in, out any) (leader string, err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return "", err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, body)
	if err != nil {
		return "", err
	}
	res, err := s.asking.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("ask the server at %s: %w", addr, err)
	}
	defer res.Body.Close()
	answered := io.LimitReader(res.Body, maxCallBody)
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(answered).Decode(out); err != nil {
			return "", fmt.Errorf("answer of the server at %s: %w", addr, err)
		}
		return "", nil
	}
	b, err := io.ReadAll(answered)
	var f callFailed
	if err != nil || json.Unmarshal(b, &f) != nil || f.Message == "" {
		f.Message = fmt.Sprintf("%s %.200q", res.Status, b) // such as one that is older than this call
	}
	return f.Leader, fmt.Errorf("the server at %s: %s", addr, f.Message)
}

func (s *Server) askJoin(ctx context.Context, addr string, req joinRequest) (leader string, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	var out struct{}
	return s.call(ctx, http.MethodPost, addr, joinPath, req, &out)
}

func (s *Server) askStats(ctx context.Context, addr string) (out statsAnswer, err error) {
	_, err = s.call(ctx, http.MethodGet, addr, statsPath, nil, &out)
	return out, err
}

func (out statsAnswer) stats() autopilot.ServerStats {
	st := autopilot.ServerStats{LastTerm: out.LastTerm, LastIndex: out.LastIndex, LastContact: time.Duration(out.LastContactMs * float64(time.Millisecond))}
	if out.LastContactMs < 0 {
		st.LastContact = -1
	}
	return st
}
