package lifecycle

import (
	"encoding/json"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// CreateParams ask for a sandbox. Zero values mean the service's defaults.
type CreateParams struct {
	// ID is the idempotency key. Empty: a new id. A repeated create with the same id and the same template answers with
	// the sandbox that exists; anything else is a conflict.
	ID        api.SandboxID
	Caller    auth.Identity // tenant and key on whose behalf
	Template  string        // name, or digest "sha256:…"
	Timeout   time.Duration // until its deadline; 0: the default timeout
	CPUMillis int64         // thousandths of a core
	MemoryMB  int64         // MiB
	DiskMB    int64         // MiB, as clients of the contract are told; Limits.DiskBytes is what is enforced

	Metadata map[string]string
	EnvVars  map[string]string

	Hostname string
	User     string // default user of processes; empty: the template's
	Cwd      string
	Profile  string       // "default" or "strict"; empty: default
	Main     *guest.Start // its own command; the sandbox ends with it
	QoS      string       // class; empty: burstable
	Limits   state.Limits // zero fields: the node's own
	Where    placement.Rules

	Lifecycle      state.Lifecycle
	Open           bool // envd needs no token
	PrivateTraffic bool // the other ports need one

	AllowInternetAccess *bool
	Network             json.RawMessage // kept as it is

	joins     bool           // private networks: it may have to be on one node
	rates     rates          // of Network's shape, once it is complete
	copyOf    *state.Sandbox // where a fork makes it: clients are told of this one's template
	dedicated bool           // its tenant has nodes of its own
	// templateOf is its tenant where that has copies of templates of its own.
	templateOf string
}

// Health is what is known of a sandbox's health at this moment.
type Health struct {
	Status    string        // HealthOK or HealthFailed
	Reason    string        // why not ok
	SandboxID api.SandboxID //
	Node      api.NodeID
	State     state.SandboxState
	Uptime    time.Duration // since it ran; 0 where it does not
	Version   string        // SoulBox version of the init inside
}

// Values of Health.Status.
const (
	HealthOK     = "ok"
	HealthFailed = "unhealthy"
)

// OK reports whether the sandbox is healthy.
func (h Health) OK() bool { return h.Status == HealthOK }
