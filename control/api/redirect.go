package api

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
)

// redirects is how many redirects a request may follow.
type redirects int

func maxRedirects(n int) (redirects, error) {
	if n == 0 {
		n = DefaultMaxRedirects
		if v := os.Getenv(EnvMaxRedirects); v != "" {
			parsed, err := strconv.Atoi(v)
			if err != nil || parsed < 0 {
				return 0, fmt.Errorf("%s is %.20q, a number of redirects is wanted", EnvMaxRedirects, v)
			}
			n = parsed
		}
	}
	return redirects(max(n, 0)), nil
}

// credentials are the headers that only the host that the client was made for may see.
var credentials = []string{"X-API-Key", "Authorization", "Cookie", "X-Access-Token", "E2b-Traffic-Access-Token", "X-Team-ID", "X-Admin-Token"}

// check implements http.Client.CheckRedirect. Who has once been sent to another host keeps nothing back: from there on nobody but
// that host says where the request goes.
func (max redirects) check(req *http.Request, via []*http.Request) error {
	switch {
	case max == 0:
		return http.ErrUseLastResponse // an answer like another
	case len(via) > int(max):
		return fmt.Errorf("more than %d redirects", max)
	case via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
		return errors.New("redirected from https to " + req.URL.Scheme)
	}
	first := via[0].URL
	for _, r := range append(via[1:len(via):len(via)], req) {
		if r.URL.Scheme == first.Scheme && r.URL.Host == first.Host {
			continue
		}
		for _, name := range credentials {
			req.Header.Del(name)
		}
		break
	}
	return nil
}
