package cli

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

type keptSecret struct {
	api.Secret
	value string
}

// serveSecrets serves secrets in pages of two.
func (f *fake) serveSecrets(mux *http.ServeMux) {
	at := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	handle := func(pattern string, h http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			defer f.mu.Unlock()
			h(w, r)
		})
	}
	find := func(w http.ResponseWriter, r *http.Request) int {
		ref := r.PathValue("secret")
		i := slices.IndexFunc(f.secrets, func(s keptSecret) bool { return s.SecretID == ref || s.Name == ref })
		if i < 0 {
			refuse(w, 404, api.CodeNotFound, "there is no secret %q", ref)
		}
		return i
	}
	handle("GET /secrets", func(w http.ResponseWriter, r *http.Request) {
		after := slices.IndexFunc(f.secrets, func(s keptSecret) bool { return s.SecretID == r.URL.Query().Get("nextToken") }) + 1
		end := min(after+2, len(f.secrets))
		if end < len(f.secrets) {
			w.Header().Set("X-Next-Token", f.secrets[end-1].SecretID)
		}
		page := []api.Secret{}
		for _, s := range f.secrets[after:end] {
			page = append(page, s.Secret)
		}
		reply(w, 200, page)
	})
	handle("POST /secrets", func(w http.ResponseWriter, r *http.Request) {
		var req api.NewSecret
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			refuse(w, 400, api.CodeInvalid, "%v", err)
			return
		}
		s := api.Secret{SecretID: "sec_" + req.Name, Name: req.Name, CurrentVersion: 1, Metadata: req.Metadata, CreatedAt: at, UpdatedAt: at}
		f.secrets = append(f.secrets, keptSecret{s, req.Value})
		reply(w, 201, s)
	})
	handle("GET /secrets/{secret}", func(w http.ResponseWriter, r *http.Request) {
		if i := find(w, r); i >= 0 {
			reply(w, 200, f.secrets[i].Secret)
		}
	})
	handle("POST /secrets/{secret}", func(w http.ResponseWriter, r *http.Request) {
		i := find(w, r)
		if i < 0 {
			return
		}
		var req api.SecretValue
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			refuse(w, 400, api.CodeInvalid, "%v", err)
			return
		}
		s := &f.secrets[i]
		s.value = req.Value
		s.CurrentVersion++
		if req.Metadata != nil {
			s.Metadata = req.Metadata
		}
		reply(w, 200, s.Secret)
	})
	handle("DELETE /secrets/{secret}", func(w http.ResponseWriter, r *http.Request) {
		if i := find(w, r); i >= 0 {
			f.secrets = slices.Delete(f.secrets, i, i+1)
			w.WriteHeader(204)
		}
	})
}

func TestSecret_keepsListsAndForgets(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	c.stdin = "hunter2\n"
	must.Eq(t, 0, c.run(t, "secret", "create", "openai", "-metadata=team=a", "-metadata", "env=dev"), must.Sprint(c.stderr))
	must.StrContains(t, c.stdout, "sec_openai")
	must.StrContains(t, c.stdout, "env=dev, team=a")
	must.StrNotContains(t, c.stdout+c.stderr, "hunter2")
	must.Eq(t, "hunter2", f.secrets[0].value)

	must.NoError(t, os.WriteFile(filepath.Join(c.dir, "key"), []byte("of two\r\nlines\r\n"), 0o600))
	must.Eq(t, 0, c.run(t, "secret", "create", "-file=key", "-json", "github"), must.Sprint(c.stderr))
	var made api.Secret
	must.NoError(t, json.Unmarshal([]byte(c.stdout), &made))
	must.Eq(t, f.secrets[1].Secret, made)
	must.Eq(t, "of two\r\nlines", f.secrets[1].value)

	must.Eq(t, 0, c.run(t, "secret", "create", "third"))
	must.Eq(t, 0, c.run(t, "secret", "list"))
	must.Eq(t, []string{"ID", "sec_openai", "sec_github", "sec_third"}, firstWords(c.stdout), must.Sprint("every page"))
	must.Eq(t, 0, c.run(t, "secret", "list", "-json"))
	var list []api.Secret
	must.NoError(t, json.Unmarshal([]byte(c.stdout), &list))
	must.SliceLen(t, 3, list)

	must.Eq(t, 0, c.run(t, "secret", "delete", "github"))
	must.Eq(t, "Deleted secret github\n", c.stdout)
	must.Eq(t, 1, c.run(t, "secret", "info", "github"))
	must.StrContains(t, c.stderr, "there is no secret")
	must.Eq(t, 0, c.run(t, "secret", "info", "sec_openai"))
	must.Eq(t, []string{"ID", "sec_openai"}, firstWords(c.stdout))
}

func firstWords(table string) []string {
	var out []string
	for line := range strings.Lines(table) {
		out = append(out, strings.Fields(line)[0])
	}
	return out
}

func TestSecretUpdate_changesMetadataOnlyWhereItIsTold(t *testing.T) {
	before := map[string]string{"team": "a"}
	for _, tc := range []struct {
		name string
		args []string
		want map[string]string
	}{
		{"nothing is said", nil, before},
		{"others", []string{"-metadata=env=dev"}, map[string]string{"env": "dev"}},
		{"none", []string{"-clear-metadata"}, map[string]string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			f.secrets = []keptSecret{{api.Secret{SecretID: "sec_a", Name: "a", CurrentVersion: 1, Metadata: maps.Clone(before)}, "old"}}
			c := f.call(t)
			c.stdin = "new"
			must.Eq(t, 0, c.run(t, append([]string{"secret", "update", "a"}, tc.args...)...), must.Sprint(c.stderr))
			must.Eq(t, "new", f.secrets[0].value)
			must.Eq(t, tc.want, f.secrets[0].Metadata)
			must.Eq(t, int64(2), f.secrets[0].CurrentVersion)
		})
	}
	c := newFake(t).call(t)
	must.Eq(t, 1, c.run(t, "secret", "update", "a", "-clear-metadata", "-metadata=a=b"))
	must.StrContains(t, c.stderr, "exclude each other")
}

func TestSecretValue_isReadOrRefused(t *testing.T) {
	for _, tc := range []struct {
		name, stdin string
		args        []string
		wants       string
	}{
		{"as an argument", "", []string{"hunter2"}, "< value"},
		{"empty", "", nil, "empty"},
		{"a line end only", "\r\n", nil, "empty"},
		{"no text", "a\xffb", nil, "UTF-8"},
		{"without an end", strings.Repeat("x", maxSecretInput+2), nil, "more than"},
		{"of a file that is not there", "", []string{"-file=none"}, "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			c := f.call(t)
			c.stdin = tc.stdin
			must.Eq(t, 1, c.run(t, append([]string{"secret", "create", "a"}, tc.args...)...))
			must.StrContains(t, c.stderr, tc.wants)
			must.StrNotContains(t, c.stderr, "hunter2")
			must.SliceEmpty(t, f.secrets)
		})
	}
}
