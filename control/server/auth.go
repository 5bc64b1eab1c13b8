package server

import (
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/auth"
)

// maxKeyLen bounds a key, in bytes, before anything looks at it.
const maxKeyLen = auth.MaxToken

// credentials returns what a request shows of who sends it. Nothing is ever taken from a URL.
func credentials(r *http.Request) (auth.Credentials, error) {
	c := auth.Credentials{}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.Source = from.Addr()
	}
	if r.TLS != nil {
		c.Certificate = r.TLS.PeerCertificates
	}
	var err error
	if vs := r.Header.Values("X-API-Key"); len(vs) > 0 {
		c.Key, err = oneKey("X-API-Key", vs)
	} else if vs := r.Header.Values("X-Admin-Token"); len(vs) > 0 { // the contract's name for a key with rights in all tenants
		c.Key, err = oneKey("X-Admin-Token", vs)
	} else {
		c.Bearer, err = bearer(r)
	}
	return c, err
}

// bearer returns the secret of the header Authorization.
func bearer(r *http.Request) (string, error) {
	vs := r.Header.Values("Authorization")
	if len(vs) == 0 {
		return "", nil
	}
	v, err := oneKey("Authorization", vs)
	if err != nil {
		return "", err
	}
	scheme, key, ok := strings.Cut(v, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
			"the header Authorization is not \"Bearer <API key>\"; X-API-Key works too")
	}
	return strings.TrimSpace(key), nil
}

func oneKey(header string, vs []string) (string, error) {
	if len(vs) > 1 || len(vs[0]) > maxKeyLen {
		return "", api.Errorf(http.StatusUnauthorized, api.CodeUnauthorized,
			"the header %s comes more than once or is longer than %d bytes", header, maxKeyLen)
	}
	return vs[0], nil
}

// checkClient refuses a client that says that it is too old, or newer than this service's API. One that says nothing is
// served: the SDKs of the contract do not know these headers.
func checkClient(r *http.Request) error {
	if v := r.Header.Get(api.APIVersionHeader); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return invalid("the header %s is %.20q, not a number", api.APIVersionHeader, v)
		}
		if err := version.CompatibleAPI("client", n); err != nil {
			return api.Errorf(http.StatusBadRequest, api.CodeVersion, "%s", err.Error())
		}
	}
	v := r.Header.Get(api.ClientVersionHeader)
	if v == "" {
		return nil
	}
	if err := version.Compatible("client", v, version.MinClient); err != nil {
		return api.Errorf(http.StatusBadRequest, api.CodeVersion, "%s", err.Error())
	}
	return nil
}
