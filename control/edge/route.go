package edge

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Headers by which a client says which port of which sandbox it means.
const (
	idHeader      = "E2b-Sandbox-Id"
	portHeader    = "E2b-Sandbox-Port"
	trafficHeader = "E2b-Traffic-Access-Token"
)

// errHalf is for a request with one routing header.
var errHalf = errors.New("the headers " + idHeader + " and " + portHeader + " go together")

// routeOf returns what a request is for; the zero target where it is for no sandbox.
//
// A name "<port>-<sandboxID>[-<client>].<domain>" counts before all else. The routing headers count where the host is
// an address, localhost, or a name that begins with "sandbox.". A signed file link without either is for the sandbox whose
// token it was signed with.
func routeOf(r *http.Request) (target, error) {
	if t, ok := parseHost(r.Host); ok {
		return t, nil
	}
	id, port := r.Header.Get(idHeader), r.Header.Get(portHeader)
	if (id != "" || port != "") && takesHeaders(r.Host) {
		if id == "" || port == "" {
			return target{}, errHalf
		}
		if len(r.Header.Values(idHeader)) > 1 || len(r.Header.Values(portHeader)) > 1 {
			return target{}, errors.New("a routing header comes twice")
		}
		n, err := parsePort(port)
		if err != nil {
			return target{}, err
		}
		return target{id: id, port: n}, nil
	}
	if r.URL.Path == "/files" && r.URL.Query().Has("signature") {
		return target{port: EnvdPort, signed: true}, nil
	}
	return target{}, nil
}

// parseHost reads "<port>-<id>[-<client>].<domain>[:<port>]".
func parseHost(host string) (target, bool) {
	label, _, ok := strings.Cut(host, ".")
	if !ok || len(label) > 128 {
		return target{}, false
	}
	port, id, ok := strings.Cut(label, "-")
	if !ok || id == "" {
		return target{}, false
	}
	n, err := parsePort(port)
	if err != nil {
		return target{}, false
	}
	return target{id: strings.ToLower(id), port: n}, true
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' || s[0] == '0' {
		return 0, errors.New("the port of the sandbox is not a number between 1 and 65535")
	}
	return int(n), nil
}

// takesHeaders reports whether the routing headers count for a host.
func takesHeaders(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	return host == "localhost" || strings.HasPrefix(host, "sandbox.") || net.ParseIP(host) != nil
}

// cors allows scripts of every origin, as for the API: what lets a request in is a token that a page must have been given. It
// reports whether the request was a preflight and is answered.
func cors(w http.ResponseWriter, r *http.Request) bool {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "*")
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS")
	want := r.Header.Get("Access-Control-Request-Headers")
	if len(want) == 0 || len(want) > 2048 || strings.ContainsAny(want, "\r\n") {
		want = "*"
	}
	h.Set("Access-Control-Allow-Headers", want)
	h.Set("Access-Control-Max-Age", "7200")
	w.WriteHeader(http.StatusNoContent)
	return true
}
