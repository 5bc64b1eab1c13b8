package envd

import (
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/answer"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
)

// Usage is what a sandbox uses, in bytes but for the processor.
type Usage struct {
	Time     time.Time
	CPUCount int64
	CPUPct   float64 // of CPUCount processors: 100 is all of them
	MemTotal int64
	MemUsed  int64
	MemCache int64

	DiskTotal int64
	DiskUsed  int64
}

// metrics is GET /metrics.
func (h *Handler) metrics(w http.ResponseWriter, r *http.Request) {
	if h.cfg.Usage == nil {
		answer.Error(w, http.StatusNotImplemented, "this node measures no sandboxes")
		return
	}
	u, err := h.cfg.Usage(r.Context(), scope.Of(r.Context()))
	if err != nil {
		answer.Error(w, http.StatusInternalServerError, "metrics: %v", err)
		return
	}
	const mib = 1 << 20
	answer.JSON(w, http.StatusOK, struct {
		TS          int64   `json:"ts"`
		CPUCount    int64   `json:"cpu_count"`
		CPUUsedPct  float64 `json:"cpu_used_pct"`
		MemTotal    int64   `json:"mem_total"`
		MemUsed     int64   `json:"mem_used"`
		MemCache    int64   `json:"mem_cache"`
		MemTotalMiB int64   `json:"mem_total_mib"`
		MemUsedMiB  int64   `json:"mem_used_mib"`
		DiskUsed    int64   `json:"disk_used"`
		DiskTotal   int64   `json:"disk_total"`
	}{
		u.Time.Unix(), u.CPUCount, u.CPUPct, u.MemTotal, u.MemUsed, u.MemCache, u.MemTotal / mib, u.MemUsed / mib, u.DiskUsed, u.DiskTotal,
	})
}

// envs is GET /envs: the environment that the sandbox was made with.
func envs(w http.ResponseWriter, r *http.Request) {
	env := scope.Of(r.Context()).Env
	if env == nil {
		env = map[string]string{}
	}
	answer.JSON(w, http.StatusOK, env)
}
