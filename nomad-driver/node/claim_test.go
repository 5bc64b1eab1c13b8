package node

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func warm(req *nodeapi.CreateRequest) {
	req.Warm = true
	req.Env = map[string]string{"KEPT": "template", "SAID": "before"}
}

func claimRequest() nodeapi.ClaimRequest {
	return nodeapi.ClaimRequest{
		Env: map[string]string{"SAID": "claim"}, Limits: nodeapi.Limits{PIDs: 77},
		Deadline: time.Now().Add(time.Hour), OnDeadline: nodeapi.DeadlinePause, Metadata: map[string]string{"tenant": "acme"}, AccessToken: "secret",
	}
}

func TestReal_claimOfAWarmSandbox(t *testing.T) {
	d := startDaemon(t)
	sb := d.create(warm)
	must.True(t, sb.Warm)
	health := func() int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://node"+nodeapi.EnvdPath(sb.ID)+"/health", nil)
		must.NoError(t, err)
		resp, err := d.client.Transport().RoundTrip(req)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		return resp.StatusCode
	}
	must.Eq(t, http.StatusBadGateway, health(), must.Sprint("nobody has a token for it"))
	_, err := d.client.DialPort(t.Context(), sb.ID, 80)
	must.ErrorContains(t, err, "nobody has it yet")

	req := claimRequest()
	got, err := d.client.Claim(t.Context(), sb.ID, req)
	must.NoError(t, err)
	must.False(t, got.Warm)
	must.Eq(t, "acme", got.Metadata["tenant"])
	must.Eq(t, 77, got.Limits.PIDs)
	must.Eq(t, nodeapi.DeadlinePause, got.OnDeadline)
	must.Eq(t, req.Deadline.UTC().Round(0), got.Deadline)
	must.Eq(t, http.StatusNoContent, health())
	out, _ := d.exec(sb, "sh", "-c", "echo $KEPT $SAID")
	must.Eq(t, "template claim\n", out)

	d.kill()
	d.start()
	req.Deadline = req.Deadline.Add(time.Minute)
	again, err := d.client.Claim(t.Context(), sb.ID, req)
	must.NoError(t, err, must.Sprint("the same claim is repeated, by a service that does not know that it was heard"))
	must.Eq(t, got.Deadline, again.Deadline)
	out, _ = d.exec(sb, "sh", "-c", "echo $KEPT $SAID")
	must.Eq(t, "template claim\n", out)
	req.AccessToken = "another"
	_, err = d.client.Claim(t.Context(), sb.ID, req)
	must.Eq(t, http.StatusConflict, api.StatusOf(err), must.Sprint("a second owner"))
}

func TestReal_claimIsRefused(t *testing.T) {
	d := startDaemon(t)
	sb := d.create(warm)
	cold := d.create()
	for name, c := range map[string]struct {
		id     api.SandboxID
		set    func(*nodeapi.ClaimRequest)
		status int
		says   string
	}{
		"of one that was made for somebody": {cold.ID, func(*nodeapi.ClaimRequest) {}, http.StatusConflict, "has its owner already"},
		"of none":                           {"iaaaaaaaaaaaaaaaaaaaa", func(*nodeapi.ClaimRequest) {}, http.StatusNotFound, "no sandbox"},
		"with a deadline that has passed":   {sb.ID, func(r *nodeapi.ClaimRequest) { r.Deadline = time.Now().Add(-time.Hour) }, http.StatusBadRequest, "deadline"},
		"with a bad environment":            {sb.ID, func(r *nodeapi.ClaimRequest) { r.Env = map[string]string{"A=B": "c"} }, http.StatusBadRequest, "env"},
		"with an unknown end":               {sb.ID, func(r *nodeapi.ClaimRequest) { r.OnDeadline = "explode" }, http.StatusBadRequest, "on_deadline"},
		"with limits out of bounds":         {sb.ID, func(r *nodeapi.ClaimRequest) { r.Limits.CPUMillis = -4 }, http.StatusBadRequest, "cpu_millis"},
	} {
		t.Run(name, func(t *testing.T) {
			req := claimRequest()
			c.set(&req)
			_, err := d.client.Claim(t.Context(), c.id, req)
			must.Eq(t, c.status, api.StatusOf(err))
			must.ErrorContains(t, err, c.says)
		})
	}
	got, err := d.client.Claim(t.Context(), sb.ID, claimRequest())
	must.NoError(t, err, must.Sprint("none of them has taken it"))
	must.False(t, got.Warm)
}

func TestReal_claimsTogether(t *testing.T) {
	d := startDaemon(t)
	const n = 12
	var ids []api.SandboxID
	for range n {
		ids = append(ids, d.create(warm).ID)
	}
	ids = append(ids, "iaaaaaaaaaaaaaaaaaaaa", ids[0]) // nobody's, and one that is claimed twice
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			req := claimRequest()
			req.Env, req.AccessToken, req.Metadata = nil, fmt.Sprint("secret ", i), map[string]string{"tenant": fmt.Sprint(i)}
			errs[i] = d.client.ClaimTogether(t.Context(), id, req)
		})
	}
	wg.Wait()
	must.Eq(t, http.StatusNotFound, api.StatusOf(errs[n]))
	first, second := errs[0], errs[n+1]
	must.True(t, (first == nil) != (second == nil), must.Sprint("one owner: ", first, second))
	must.Eq(t, http.StatusConflict, api.StatusOf(cmp.Or(first, second)))
	for i := 1; i < n; i++ {
		must.NoError(t, errs[i])
		sb, err := d.client.Get(t.Context(), ids[i])
		must.NoError(t, err)
		must.False(t, sb.Warm)
		must.Eq(t, fmt.Sprint(i), sb.Metadata["tenant"])
	}
	for _, count := range []int{0, nodeapi.MaxClaims + 1} {
		body, err := json.Marshal(nodeapi.ClaimsRequest{Claims: make([]nodeapi.OneClaim, count)})
		must.NoError(t, err)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/v1/claims", bytes.NewReader(body))
		must.NoError(t, err)
		resp, err := d.client.Transport().RoundTrip(req)
		must.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		must.NoError(t, errors.Join(err, resp.Body.Close()))
		must.Eq(t, http.StatusBadRequest, resp.StatusCode)
		must.StrContains(t, string(text), fmt.Sprintf("claims: %d, 1 to %d are allowed", count, nodeapi.MaxClaims))
	}
}
