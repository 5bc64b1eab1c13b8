package edge

import (
	"encoding/json"
	"html/template"
	"net/http"
	"strings"
)

// gone is the contract's body for a sandbox, or a port of it, that cannot be reached.
type gone struct {
	SandboxID string `json:"sandboxId"`
	Message   string `json:"message"`
	Code      int    `json:"code"`
	Port      int    `json:"port,omitempty"`
}

var page = template.Must(template.New("gone").Parse(`<!doctype html>
<meta charset="utf-8"><title>{{.Code}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:4rem auto;max-width:36rem;padding:0 1rem}code{background:#8882;padding:.1em .3em}</style>
<h1>{{.Message}}</h1>
<p>Sandbox <code>{{.SandboxID}}</code>{{if .Port}}, port <code>{{.Port}}</code>{{end}}</p>
`))

// writePage answers a browser with a page and everybody else with JSON.
func writePage(w http.ResponseWriter, r *http.Request, status int, g gone) {
	if !browser(r) {
		writeJSON(w, status, g)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = page.Execute(w, g)
}

// browser reports whether somebody looks at the answer.
func browser(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html") && strings.Contains(r.UserAgent(), "Mozilla/")
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // what cannot be written any more is the client's loss
}
