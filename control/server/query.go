package server

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Limits of parameters.
const (
	maxQueryBytes = 16 << 10
	maxTokenBytes = 512
	maxPathBytes  = 4096 // of a path in a sandbox
	maxUserBytes  = 256
	maxE2BLimit   = 100 // of a page in the contract
)

// query is the parameters of a request, each checked to come at most once.
type query struct {
	values url.Values
	err    error // of the first parameter that breaks a rule
}

// parseQuery reads the parameters strictly: net/http drops what it cannot read.
func parseQuery(r *http.Request) (*query, error) {
	if len(r.URL.RawQuery) > maxQueryBytes {
		return nil, api.Errorf(http.StatusRequestURITooLong, api.CodeTooLarge, "the query is longer than %d bytes", maxQueryBytes)
	}
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, invalid("the query is malformed: %s", err)
	}
	return &query{values: v}, nil
}

// fail keeps the first error.
func (q *query) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

// str returns a parameter of at most limit bytes of text, or "".
func (q *query) str(name string, limit int) string {
	vs := q.values[name]
	if len(vs) == 0 {
		return ""
	}
	switch v := vs[0]; {
	case len(vs) > 1:
		q.fail(invalid("parameter %s comes %d times", name, len(vs)))
	case len(v) > limit:
		q.fail(invalid("parameter %s is longer than %d bytes", name, limit))
	case !utf8.ValidString(v) || strings.ContainsRune(v, 0):
		q.fail(invalid("parameter %s is not UTF-8 without NUL bytes", name))
	default:
		return v
	}
	return ""
}

// integer returns a parameter between low and high, or def where it is missing.
func (q *query) integer(name string, def, low, high int64) int64 {
	if _, ok := q.values[name]; !ok {
		return def
	}
	s := q.str(name, 32)
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < low || n > high {
		q.fail(invalid("parameter %s is %.32q, an integer from %d to %d is wanted", name, s, low, high))
		return def
	}
	return n
}

func (q *query) boolean(name string) bool {
	switch s := q.str(name, 8); s {
	case "", "false", "0":
		return false
	case "true", "1":
		return true
	default:
		q.fail(invalid("parameter %s is %.8q, true or false is wanted", name, s))
		return false
	}
}

func (q *query) time(name string) time.Time {
	s := q.str(name, 64)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		q.fail(invalid("parameter %s is %.64q, a time as 2006-01-02T15:04:05Z is wanted", name, s))
	}
	return t
}

func (q *query) order(name string) state.Order {
	switch s := q.str(name, 8); s {
	case "", "desc":
		return state.Descending
	case "asc":
		return state.Ascending
	default:
		q.fail(invalid("parameter %s is %.8q, asc or desc is wanted", name, s))
		return state.Descending
	}
}

// states returns a comma list of states, which may also come as several parameters. Only those of allowed are taken.
func (q *query) states(name string, allowed ...state.SandboxState) []state.SandboxState {
	var out []state.SandboxState
	for _, v := range q.values[name] {
		for word := range strings.SplitSeq(v, ",") {
			st := state.SandboxState(word)
			if !contains(allowed, st) {
				q.fail(invalid("parameter %s has %.20q, these are wanted: %s", name, word, join(allowed)))
				return nil
			}
			if !contains(out, st) {
				out = append(out, st)
			}
		}
	}
	return out
}

func contains(list []state.SandboxState, s state.SandboxState) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

func join(list []state.SandboxState) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// metadataFilter reads the metadata filter of the contract. The value of the parameter, decoded once by the query itself,
// is a query string, whose keys and values were percent-encoded before they were put into it: they are decoded once more.
func metadataFilter(v string) (map[string]string, error) {
	if v == "" {
		return nil, nil
	}
	pairs, err := url.ParseQuery(v)
	if err != nil {
		return nil, invalid("parameter metadata is not key=value&key=value: %s", err)
	}
	out := make(map[string]string, len(pairs))
	for k, vs := range pairs {
		key, err := url.PathUnescape(k)
		if err != nil {
			return nil, invalid("parameter metadata: key %.60q: %s", k, err)
		}
		for _, v := range vs {
			value, err := url.PathUnescape(v)
			if err != nil {
				return nil, invalid("parameter metadata: value %.60q: %s", v, err)
			}
			if old, twice := out[key]; twice && old != value {
				return nil, invalid("parameter metadata wants two values of the key %.60q", key)
			}
			out[key] = value
		}
	}
	if err := state.CheckMetadata(out); err != nil {
		return nil, err
	}
	return out, nil
}

// sandboxID returns the id in the path. What can be no id at all is an error of the client; what only no sandbox has is
// not found, as clients expect it.
func sandboxID(r *http.Request) (api.SandboxID, error) {
	s := r.PathValue("id")
	id, err := api.ParseSandboxID(s)
	if err == nil {
		return id, nil
	}
	base, rest, _ := strings.Cut(s, "-")
	if len(s) > 128 || !idBytes(base) || base == "" || !idBytes(strings.ReplaceAll(rest, "-", "")) {
		return "", invalid("%s", err)
	}
	return "", api.Errorf(http.StatusNotFound, api.CodeNotFound, "sandbox %s not found", s)
}

func idBytes(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
