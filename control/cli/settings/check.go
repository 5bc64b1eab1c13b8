package settings

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

const maxValue = 2048 // bytes of one value

// ParseAddress checks the address of a control service, a URL or host:port, and returns it as a URL without a path.
func ParseAddress(s string) (string, error) {
	if len(s) > maxValue {
		return "", fmt.Errorf("address is longer than %d bytes", maxValue)
	}
	full := s
	if !strings.Contains(s, "://") {
		full = "http://" + s
	}
	u, err := url.Parse(full)
	if err != nil {
		return "", fmt.Errorf("address %.100q is not a URL: %w", s, errors.Unwrap(err))
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("address %.100q: the scheme must be http or https", s)
	case u.Hostname() == "":
		return "", fmt.Errorf("address %.100q names no host", s)
	case u.User != nil:
		return "", errors.New("address must not hold a user or password: use the API key")
	case u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return "", fmt.Errorf("address %.100q must not have a path, a query or a fragment", s)
	}
	if u.Port() == "" && !strings.Contains(s, "://") {
		u.Host = net.JoinHostPort(u.Hostname(), "7300")
	}
	return u.Scheme + "://" + u.Host, nil
}

// checkAPIKey checks only what can be wrong in any key: the service knows the rest.
func checkAPIKey(s string) (string, error) {
	if !strings.HasPrefix(s, "sb_") && !strings.HasPrefix(s, "e2b_") {
		return "", errors.New(`an API key starts with "sb_" or "e2b_"`)
	}
	return s, printable(s)
}

func checkTemplate(s string) (string, error) { return s, printable(s) }

// printable refuses what would break a header line or a terminal.
func printable(s string) error {
	if len(s) > maxValue {
		return fmt.Errorf("value is longer than %d bytes", maxValue)
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("value holds the byte %#02x; only printable ASCII without spaces is allowed", c)
		}
	}
	return nil
}
