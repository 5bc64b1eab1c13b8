package nomad

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/soulbox-dev/soulbox/control/api"
)

// mapError returns an error of Nomad's client as an *api.Error. A request that Nomad refuses is the operator's business
// and not the client's: every one of them says that the service is unavailable, and why.
func mapError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	var resp nomadapi.UnexpectedResponseError
	if !errors.As(err, &resp) || !resp.HasStatusCode() {
		return unavailable(err)
	}
	body := strings.TrimSpace(resp.Body())
	if body == "" {
		body = resp.StatusText()
	}
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "nomad: %.300s (status %d)", body, resp.StatusCode())
}

// registerError is mapError for a class's parent job. That a tenant's node pool is missing is told as what it is.
func registerError(c class, err error) error {
	var resp nomadapi.UnexpectedResponseError
	if c.tenant != "" && errors.As(err, &resp) && strings.Contains(resp.Body(), "node pool") {
		return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity,
			"tenant %s has nodes of its own (isolation.compute), and Nomad has no node pool %s: %.200s", c.tenant, pool(c.tenant), strings.TrimSpace(resp.Body()))
	}
	return mapError(err)
}

func unavailable(err error) error {
	return api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable, "nomad cannot be reached: %v", err)
}

func status(err error) int {
	var resp nomadapi.UnexpectedResponseError
	if errors.As(err, &resp) {
		return resp.StatusCode()
	}
	return 0
}

func isNotFound(err error) bool { return status(err) == http.StatusNotFound }

// isParentGone reports whether a dispatch failed because its parent job was purged or stopped. Nomad has no better word
// for either than its text.
func isParentGone(err error) bool {
	var resp nomadapi.UnexpectedResponseError
	if !errors.As(err, &resp) {
		return false
	}
	body := resp.Body()
	return strings.Contains(body, "parameterized job not found") ||
		strings.Contains(body, "is not a parameterized job") || strings.Contains(body, "is stopped")
}

// isNodeGone reports whether Nomad does not know a client. It has no better word for it than its text.
func isNodeGone(err error) bool {
	var resp nomadapi.UnexpectedResponseError
	return errors.As(err, &resp) && strings.Contains(resp.Body(), "node not found")
}

// capacityError tells why the scheduler found no node, in its own terms.
func capacityError(id api.SandboxID, m *nomadapi.AllocationMetric) error {
	return api.Errorf(http.StatusServiceUnavailable, api.CodeCapacity,
		"no node can take sandbox %s: %s", id, placementFailure(m))
}

func placementFailure(m *nomadapi.AllocationMetric) string {
	if m == nil {
		return "nomad gave no reason"
	}
	available := 0
	for _, n := range m.NodesAvailable {
		available += n
	}
	var why []string
	add := func(format string, counts map[string]int) {
		keys := make([]string, 0, len(counts))
		for k := range counts {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			why = append(why, fmt.Sprintf(format, k, counts[k]))
		}
	}
	add("%s is exhausted on %d", m.DimensionExhausted)
	add("%q filters %d", m.ConstraintFiltered)
	for _, q := range m.QuotaExhausted {
		why = append(why, "nomad quota "+q+" is exhausted")
	}
	if len(why) == 0 && available == 0 {
		return "there is none in its datacenters and node pool"
	}
	if len(why) == 0 {
		return fmt.Sprintf("of %d nodes, %d are filtered out and %d are full", available, m.NodesFiltered, m.NodesExhausted)
	}
	return fmt.Sprintf("of %d nodes, %s", available, strings.Join(why, ", "))
}
