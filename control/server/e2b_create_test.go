package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

func sortStrings(s []string) { slices.Sort(s) }

func TestE2BCreate_defaultsAreTheServers(t *testing.T) {
	for _, tc := range []struct {
		path    string
		timeout time.Duration
		open    bool // only the first version may leave envd without a token
	}{
		{"/sandboxes", 15 * time.Second, true},
		{"/v2/sandboxes", 300 * time.Second, false},
	} {
		t.Run(tc.path, func(t *testing.T) {
			h := newHarness(t)
			a := h.do("POST", tc.path, `{"templateID":"base"}`)
			must.Eq(t, http.StatusCreated, a.status)
			must.Eq(t, []lifecycle.CreateParams{{
				Caller:   identity("00000000000000aa", "a"),
				Template: "base", Timeout: tc.timeout, Lifecycle: state.Lifecycle{OnTimeout: state.OnTimeoutKill},
				Open: tc.open,
			}}, h.life.created)
		})
	}
}

func TestE2BCreate_answerHasExactlyTheContractsFields(t *testing.T) {
	h := newHarness(t)
	m := h.do("POST", "/v2/sandboxes", `{"templateID":"base"}`).object(t)
	must.Eq(t, map[string]any{
		"templateID": "base", "sandboxID": string(testID), "clientID": clientID, "envdVersion": "0.6.13", "alias": "base",
		"trafficAccessToken": nil, "domain": nil,
	}, m)

	m = h.do("POST", "/v2/sandboxes", `{"templateID":"sha256:00"}`).object(t)
	_, has := m["alias"]
	must.False(t, has, must.Sprint("a digest is no alias"))
}

func TestE2BCreate_passesEverythingOn(t *testing.T) {
	h := newHarness(t)
	a := h.do("POST", "/v2/sandboxes", `{"templateID":"base:tag","timeout":60,"metadata":{"a":"b","A":"c"},"envVars":{"X":"y"},
		"autoPause":false,"autoPauseMemory":true,"autoResume":{"enabled":false},"secure":true,"allow_internet_access":false,
		"network":{"allowPublicTraffic":false,"allowOut":[],"denyOut":[],"egressProxy":null,"rules":{}},"mcp":{"x":{}},
		"iam":{"tokens":{}},"volumeMounts":[],"somethingNew":{"deep":[1,2,{"a":null}]}}`)
	must.Eq(t, http.StatusCreated, a.status, must.Sprint(a.body))
	p := h.life.created[0]
	must.Eq(t, "base:tag", p.Template)
	must.Eq(t, time.Minute, p.Timeout)
	must.Eq(t, map[string]string{"a": "b", "A": "c"}, p.Metadata)
	must.Eq(t, map[string]string{"X": "y"}, p.EnvVars)
	must.False(t, *p.AllowInternetAccess)
	must.StrContains(t, string(p.Network), `"allowPublicTraffic":false`)
}

func TestE2BCreate_refusesWhatItWouldIgnore(t *testing.T) {
	for field, body := range map[string]string{
		"iam":          `"iam":{"tokens":{"t":{"audience":"a","tokenType":"JWT-SVID"}}}`,
		"volumeMounts": `"volumeMounts":[{"name":"v","path":"/v"}]`,
	} {
		t.Run(field, func(t *testing.T) {
			h := newHarness(t)
			for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
				msg := h.do("POST", path, `{"templateID":"base",`+body+`}`).mustFail(t, 400, "unsupported")
				must.StrContains(t, msg, field)
			}
			must.SliceEmpty(t, h.life.created)
		})
	}
}

func TestE2BCreate_pausesTheFilesAloneWhereAskedTo(t *testing.T) {
	h := newHarness(t)
	must.Eq(t, http.StatusCreated, h.do("POST", "/sandboxes", `{"templateID":"base","autoPause":true,"autoPauseMemory":false}`).status)
	must.Eq(t, state.Lifecycle{OnTimeout: state.OnTimeoutPause, FilesOnly: true}, h.life.created[0].Lifecycle)
}

func TestNetwork_rulesOfTheContract(t *testing.T) {
	many := make([]string, 11)
	for i := range many {
		many[i] = fmt.Sprintf(`"d%d.com":[]`, i)
	}
	for name, tc := range map[string]struct{ network, field string }{ // field "": it is right
		"addresses, ranges":          {`"allowOut":["1.1.1.1","10.0.0.0/8"],"denyOut":["0.0.0.0/0","::/0"]`, ""},
		"domain with all denied":     {`"allowOut":["*.example.com"],"denyOut":["0.0.0.0/0"]`, ""},
		"domain without all denied":  {`"allowOut":["example.com"]`, "you must include 'ALL_TRAFFIC' in deny out"},
		"denied domain":              {`"denyOut":["example.com"]`, "invalid denied CIDR example.com"},
		"no domain":                  {`"allowOut":["a b"],"denyOut":["0.0.0.0/0"]`, "invalid allowed entry a b"},
		"a rule":                     {`"rules":{"a.com":[{"transform":{"headers":{"X-A":"b"}}}]}`, ""},
		"two transforms":             {`"rules":{"a.com":[{"transform":{}},{"transform":{}}]}`, "network.rules"},
		"eleven domains":             {`"rules":{` + strings.Join(many, ",") + `}`, "network.rules"},
		"header with a line break":   {`"rules":{"a.com":[{"transform":{"headers":{"X":"a\nb"}}}]}`, "network.rules"},
		"header name too long":       {`"rules":{"a.com":[{"transform":{"headers":{"` + strings.Repeat("x", 65) + `":"b"}}}]}`, "network.rules"},
		"masked host":                {`"maskRequestHost":"localhost:${PORT}"`, ""},
		"masked host with a path":    {`"maskRequestHost":"a/b"`, "network.maskRequestHost"},
		"port 0":                     {`"httpsPorts":[0]`, "network.httpsPorts"},
		"proxy":                      {`"egressProxy":{"address":"p.example.com:1080"}`, ""},
		"proxy without a port":       {`"egressProxy":{"address":"p.example.com"}`, "network.egressProxy"},
		"proxy with a long password": {`"egressProxy":{"address":"p:1","password":"` + strings.Repeat("x", 256) + `"}`, "network.egressProxy"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			a := h.do("POST", "/v2/sandboxes", `{"templateID":"base","network":{`+tc.network+`}}`)
			if tc.field == "" {
				must.Eq(t, http.StatusCreated, a.status, must.Sprint(a.body))
				return
			}
			must.StrContains(t, a.mustFail(t, 400, api.CodeInvalid), tc.field)
			must.SliceEmpty(t, h.life.created)
		})
	}
}

func TestPrivateTraffic_needsASecuredSandbox(t *testing.T) {
	h := newHarness(t)
	body := `{"templateID":"base","network":{"allowPublicTraffic":false}}`
	h.do("POST", "/sandboxes", body).mustFail(t, 400, api.CodeInvalid)
	must.Eq(t, http.StatusCreated, h.do("POST", "/v2/sandboxes", body).status)
	must.True(t, h.life.created[0].PrivateTraffic)
}

func TestE2BCreate_refusesBadFields(t *testing.T) {
	for name, tc := range map[string]struct{ body, field string }{
		"no template":           {`{}`, "templateID"},
		"mcp no object":         {`{"templateID":"b","mcp":[]}`, "mcp"},
		"empty template":        {`{"templateID":""}`, "templateID"},
		"template of type":      {`{"templateID":7}`, "templateID"},
		"timeout zero":          {`{"templateID":"b","timeout":0}`, "timeout"},
		"timeout negative":      {`{"templateID":"b","timeout":-1}`, "timeout"},
		"timeout over int32":    {`{"templateID":"b","timeout":2147483648}`, "timeout"},
		"timeout 2^63":          {`{"templateID":"b","timeout":9223372036854775808}`, "timeout"},
		"timeout a fraction":    {`{"templateID":"b","timeout":1.5}`, "timeout"},
		"timeout a string":      {`{"templateID":"b","timeout":"60"}`, "timeout"},
		"timeout NaN":           {`{"templateID":"b","timeout":NaN}`, "not JSON"},
		"metadata a number":     {`{"templateID":"b","metadata":{"a":1}}`, "metadata"},
		"metadata an array":     {`{"templateID":"b","metadata":["a"]}`, "metadata"},
		"env not a map":         {`{"templateID":"b","envVars":"A=b"}`, "envVars"},
		"autoResume no enabled": {`{"templateID":"b","autoResume":{}}`, "autoResume.enabled"},
		"autoPauseMemory alone": {`{"templateID":"b","autoPauseMemory":false}`, "autoPauseMemory"},
		"field twice":           {`{"templateID":"b","templateID":"c"}`, "twice"},
		"field twice, escaped":  {`{"templateID":"b","template\u0049D":"c"}`, "twice"},
		"inner field twice":     {`{"templateID":"b","metadata":{"a":"1","a":"2"}}`, "twice"},
		"near field":            {`{"templateID":"b","Timeout":5}`, "timeout"},
		"not an object":         {`["templateID"]`, "object"},
		"null":                  {`null`, "object"},
		"more behind":           {`{"templateID":"b"}{}`, "more"},
		"broken off":            {`{"templateID":"b"`, "breaks off"},
		"not UTF-8":             {"{\"templateID\":\"\xff\"}", "UTF-8"},
		"too deep":              {`{"templateID":"b","x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, "deeper"},
		"blank":                 {"  \n", "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			msg := h.do("POST", "/v2/sandboxes", tc.body).mustFail(t, 400, api.CodeInvalid)
			must.StrContains(t, msg, tc.field)
			must.SliceEmpty(t, h.life.created)
		})
	}
}

func TestE2BCreate_errorsOfTheLifecycleKeepTheirCodes(t *testing.T) {
	for _, tc := range []struct {
		err    error
		status int
		code   string
	}{
		{api.Errorf(404, api.CodeUnknownTemplate, "no template"), 404, api.CodeUnknownTemplate},
		{api.Errorf(429, "limit_reached", "too many"), 429, "limit_reached"},
		{api.Errorf(503, api.CodeCapacity, "full"), 503, api.CodeCapacity},
		{&state.LimitError{Field: "metadata", Problem: "is too much"}, 400, api.CodeInvalid},
		{state.ErrNoLeader, 503, api.CodeUnavailable},
		{state.ErrToken, 400, api.CodeInvalid},
		{http.ErrNoLocation, 500, api.CodeInternal},
		{api.Errorf(200, "odd", "a success is no error"), 500, "odd"},
	} {
		t.Run(tc.code, func(t *testing.T) {
			h := newHarness(t)
			h.life.err = tc.err
			a := h.do("POST", "/v2/sandboxes", `{"templateID":"base"}`)
			msg := a.mustFail(t, tc.status, tc.code)
			if tc.status == 500 && tc.code == api.CodeInternal {
				must.StrNotContains(t, msg, tc.err.Error())
				must.StrContains(t, msg, a.header.Get("X-Request-Id"))
				must.StrContains(t, h.log.String(), tc.err.Error())
			}
			if tc.status == 429 || tc.status == 503 {
				must.Eq(t, "1", a.header.Get("Retry-After"))
			}
		})
	}
}
