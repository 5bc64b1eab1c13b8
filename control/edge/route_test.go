package edge

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestRouteOf_findsTheSandboxOfARequest(t *testing.T) {
	id := string(boxID)
	for name, tc := range map[string]struct {
		host, id, port, url string
		want                target
		err                 bool
	}{
		"a name":                             {host: "3000-" + id + ".example.com", want: target{id: id, port: 3000}},
		"a name with a port":                 {host: "3000-" + id + ".example.com:7300", want: target{id: id, port: 3000}},
		"a name with an old client id":       {host: "80-" + id + "-abc.x", want: target{id: id + "-abc", port: 80}},
		"a name in capitals":                 {host: "3000-" + strings.ToUpper(id) + ".example.com", want: target{id: id, port: 3000}},
		"a name wins over headers":           {host: "3000-" + id + ".x", id: string(otherID), port: "1", want: target{id: id, port: 3000}},
		"no port in the name":                {host: "x-" + id + ".example.com"},
		"port 0":                             {host: "0-" + id + ".example.com"},
		"port 65536":                         {host: "65536-" + id + ".example.com"},
		"port +80":                           {host: "+80-" + id + ".example.com"},
		"a label alone":                      {host: "3000-" + id},
		"a plain name":                       {host: "api.example.com"},
		"headers at an address":              {host: "127.0.0.1:7300", id: id, port: "49983", want: target{id: id, port: EnvdPort}},
		"headers at an IPv6 address":         {host: "[::1]:7300", id: id, port: "1", want: target{id: id, port: 1}},
		"headers at localhost":               {host: "localhost", id: id, port: "1", want: target{id: id, port: 1}},
		"headers at sandbox.":                {host: "sandbox.example.com", id: id, port: "1", want: target{id: id, port: 1}},
		"headers at another name":            {host: "api.example.com", id: id, port: "1"},
		"one header":                         {host: "localhost", id: id, err: true},
		"the other header":                   {host: "localhost", port: "1", err: true},
		"a header port that is none":         {host: "localhost", id: id, port: "http", err: true},
		"a signed link":                      {host: "localhost", url: "/files?path=a&signature=v1_x", want: target{port: EnvdPort, signed: true}},
		"a signature elsewhere":              {host: "localhost", url: "/v1/nodes?signature=x"},
		"a file without a signature":         {host: "localhost", url: "/files?path=a"},
		"a signed link with headers":         {host: "localhost", id: id, port: "49983", url: "/files?signature=x", want: target{id: id, port: EnvdPort}},
		"a request for the API":              {host: "localhost", url: "/v2/sandboxes"},
		"a label longer than a label can be": {host: "1-" + strings.Repeat("a", 200) + ".x"},
	} {
		t.Run(name, func(t *testing.T) {
			url := tc.url
			if url == "" {
				url = "/"
			}
			r := httptest.NewRequest(http.MethodGet, url, nil)
			r.Host = tc.host
			if tc.id != "" {
				r.Header.Set(idHeader, tc.id)
			}
			if tc.port != "" {
				r.Header.Set(portHeader, tc.port)
			}
			got, err := routeOf(r)
			must.Eq(t, tc.err, err != nil)
			must.Eq(t, tc.want, got)
		})
	}
}

func FuzzRouteOf(f *testing.F) {
	f.Add("3000-iaaaaaaaaaaaaaaaaaaaa.example.com", "", "", "/files")
	f.Add("localhost", "x", "1", "/")
	f.Add("[::1]:80", "", "65535", "/")
	f.Fuzz(func(t *testing.T, host, id, port, path string) {
		r := &http.Request{Host: host, Header: http.Header{}, URL: httptest.NewRequest(http.MethodGet, "/", nil).URL}
		r.URL.Path = path
		r.Header.Set(idHeader, id)
		r.Header.Set(portHeader, port)
		got, err := routeOf(r)
		if err == nil && got.id != "" && (got.port < 1 || got.port > 65535) {
			t.Fatalf("port %d", got.port)
		}
	})
}
