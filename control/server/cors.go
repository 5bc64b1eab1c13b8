package server

import "net/http"

// exposed are the headers of answers that a script of another origin may read.
const exposed = "X-Next-Token, X-Total-Running, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After, " +
	"X-Request-Id, SoulBox-File, SoulBox-Offset, SoulBox-Age-Ms"

// cors allows scripts of every origin: a request is allowed by its key, which a page must have been given, never by
// anything that a browser adds by itself. It reports whether the request was a preflight and is answered.
func cors(w http.ResponseWriter, r *http.Request) bool {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", exposed)
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS")
	if want := r.Header.Get("Access-Control-Request-Headers"); headerNames(want) {
		h.Set("Access-Control-Allow-Headers", want) // "*" would not cover Authorization
	}
	h.Set("Access-Control-Max-Age", "7200")
	h.Add("Vary", "Access-Control-Request-Headers")
	w.WriteHeader(http.StatusNoContent)
	return true
}

// headerNames reports whether s is a list of header names.
func headerNames(s string) bool {
	if s == "" || len(s) > 1024 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != ',' && c != ' ' {
			return false
		}
	}
	return true
}
