package edge

import (
	"net/http"
	"strings"
)

// preferRedirect is the preference (RFC 7240) of a client that would rather speak to the node that has the sandbox. It must be let in
// there: nodes know their callers by certificates.
const preferRedirect = "redirect"

// redirect returns where a request is better sent, or "" where it is served here: because nobody asked, because the node has no
// address, because a port is no path of the node's API, or because the edge's own word for a link would be lost on the way.
func redirect(r *http.Request, box Sandbox, t target) string {
	if t.port != EnvdPort || t.signed || linkChecked(r.Context()) || !prefers(r, preferRedirect) {
		return ""
	}
	base := box.Node.URL()
	if base == "" {
		return ""
	}
	_, prefix := box.Node.Envd(box.ID)
	to := base + prefix + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		to += "?" + r.URL.RawQuery
	}
	return to
}

// prefers reports whether a request has a preference.
func prefers(r *http.Request, want string) bool {
	for _, v := range r.Header.Values("Prefer") {
		for p := range strings.SplitSeq(v, ",") {
			name, _, _ := strings.Cut(p, ";")
			if strings.EqualFold(strings.TrimSpace(name), want) {
				return true
			}
		}
	}
	return false
}
