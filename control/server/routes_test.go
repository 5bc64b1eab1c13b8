package server

import (
	"testing"

	"github.com/shoenig/test/must"
)

// A route without a permission would be everybody's.
func TestRoutes_eachSaysWhatItNeeds(t *testing.T) {
	for _, rt := range newHarness(t).srv.routes() {
		switch {
		case rt.open, rt.anyone:
			must.True(t, rt.needs.IsZero(), must.Sprintf("%s is for everybody and needs %s", rt.pattern, rt.needs))
			must.False(t, rt.open && rt.anyone, must.Sprint(rt.pattern))
		default:
			must.True(t, rt.needs.Valid(), must.Sprintf("%s needs %q, which is no permission", rt.pattern, rt.needs))
		}
	}
}

// What is for whoever has an identity is a short list, which grows on purpose only.
func TestRoutes_forAnyone(t *testing.T) {
	var got []string
	for _, rt := range newHarness(t).srv.routes() {
		if rt.anyone {
			got = append(got, rt.pattern)
		}
	}
	must.Eq(t, []string{"GET /v1/openapi.json", "GET /v1/auth/whoami", "POST /v1/auth/explain"}, got)
}
