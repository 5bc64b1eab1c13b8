package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/control/rbac"
	"github.com/soulbox-dev/soulbox/control/rebalance"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Lifecycle is what the server needs of the sandboxes; lifecycle.Service is one. It is called from many goroutines, with
// the context of a request: it may take as long as it needs and stops when the context ends. Every error that a client may
// see is an *api.Error in its chain; a sandbox of another tenant is not found.
type Lifecycle interface {
	Create(ctx context.Context, p lifecycle.CreateParams) (state.Sandbox, []guest.Step, error)
	Get(ctx context.Context, tenant string, id api.SandboxID) (state.Sandbox, error)
	List(ctx context.Context, f state.Filter, o state.Order, p state.Page) (state.List, error)
	Delete(ctx context.Context, tenant string, id api.SandboxID) error
	SetTimeout(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error)
	Refresh(ctx context.Context, tenant string, id api.SandboxID, d time.Duration) (state.Sandbox, error)
	Connect(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, keep lifecycle.Keep) (sb state.Sandbox, resumed bool, err error)
	Pause(ctx context.Context, tenant string, id api.SandboxID, keep lifecycle.Keep) (state.Sandbox, error)
	Resume(ctx context.Context, tenant string, id api.SandboxID, d time.Duration, keep lifecycle.Keep) (state.Sandbox, error)
	TakeSnapshot(ctx context.Context, p lifecycle.SnapshotParams) (state.Snapshot, error)
	Snapshot(ctx context.Context, tenant, ref string) (state.Snapshot, error)
	Snapshots(ctx context.Context, tenant string) ([]state.Snapshot, error)
	DeleteSnapshot(ctx context.Context, tenant, ref string, force bool) error
	Fork(ctx context.Context, caller auth.Identity, id api.SandboxID, count int, d time.Duration) ([]lifecycle.Forked, error)
	SetNetwork(ctx context.Context, tenant string, id api.SandboxID, n api.NetworkConfig, internet *bool) (state.Sandbox, error)
	SetNetworkPolicy(ctx context.Context, tenant string, id api.SandboxID, p api.NetworkPolicy) error
	NetworkWith(tenant string, id api.SandboxID, p api.NetworkPolicy) (nodeapi.Network, error)
	TenantNetwork(ctx context.Context, tenant string) error
	SecretChanged(ctx context.Context, tenant, name string) error
	ShapeNetwork(ctx context.Context, tenant string, id api.SandboxID, shape api.NetworkShape) error
	// JoinNetworks replaces the private networks that a running sandbox is in.
	JoinNetworks(ctx context.Context, tenant string, id api.SandboxID, list []api.NetworkMember) error
	Published(ctx context.Context, tenant string, id api.SandboxID) ([]api.PublishedPort, error)
	SetPublished(ctx context.Context, tenant string, id api.SandboxID, want []api.PublishedPort) ([]api.PublishedPort, error)
	Elsewhere(tenant string, id api.SandboxID) ([]api.NetworkMember, error)
	SetLimits(ctx context.Context, tenant string, id api.SandboxID, c lifecycle.LimitChange) (state.Sandbox, error)
	NodeOf(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error)
	Health(ctx context.Context, tenant string, id api.SandboxID) (lifecycle.Health, error)
	NodeFor(ctx context.Context, tenant string, id api.SandboxID) (*nodeapi.Client, error)
}

var _ Lifecycle = lifecycle.API(nil)

// Authenticator tells who shows the credentials of a request; auth.Chain is one. It is called for every request and answers
// from memory where it can. An error is an *api.Error, also where nothing is shown.
type Authenticator interface {
	Authenticate(ctx context.Context, c auth.Credentials) (auth.Identity, error)
}

// Templates is what the server needs of the templates. Errors are as those of Lifecycle.
type Templates interface {
	// Import stores the root file system in the tar stream r under name, in place of one that had it. source is for people.
	Import(ctx context.Context, caller auth.Identity, name, source string, r io.Reader) (state.Template, error)
	List(ctx context.Context, tenant string) ([]state.Template, error)
	Get(ctx context.Context, tenant, nameOrDigest string) (state.Template, error)
	Delete(ctx context.Context, tenant, name string) error
	// Tag gives the content that target names more tags, Untag takes some off.
	Tag(ctx context.Context, tenant, target string, tags []string) (state.Template, error)
	Untag(ctx context.Context, tenant, name string, tags []string) error
	// Publish opens a template to other tenants, or closes it.
	Publish(ctx context.Context, tenant, name string, public bool) (state.Template, error)
	// SetPlacement says where sandboxes of a template may run that are made from then on.
	SetPlacement(ctx context.Context, tenant, name string, where placement.Rules) (state.Template, error)
	// SetNetwork says what sandboxes of a template may reach that are made from then on.
	SetNetwork(ctx context.Context, tenant, name string, p state.NetworkPolicy) (state.Template, error)
}

// Fleet shows the nodes; fleet.Fleet is one. It answers from memory.
type Fleet interface {
	Nodes() []fleet.Node
}

// Nodes takes what operators say about nodes; lifecycle.Service is one.
type Nodes interface {
	// MarkNode records an order about a node, or takes it back where it is empty.
	MarkNode(ctx context.Context, id api.NodeID, order state.NodeOrder, reason, by string) error
}

// Rebalancer shows how nodes are loaded, plans moves, and makes them; rebalance.Service is one.
type Rebalancer interface {
	Show(ctx context.Context, l rebalance.Limits) (api.Rebalance, error)
	Apply(ctx context.Context, l rebalance.Limits, atOnce int) (api.Rebalance, error)
}

// Watcher shows the sandboxes of a tenant and when they change; state.Server is one. It answers from memory.
type Watcher interface {
	// Watch returns all sandboxes of the tenant that are kept, ended ones too, the index that they show, and a channel that
	// is closed after the next change of any of them. It may also be closed without one, and after the tables were replaced
	// as a whole it may never be: ask again now and then.
	Watch(tenant string) (sandboxes []state.Sandbox, index uint64, changed <-chan struct{}, err error)
}

// Tenants shows the tenants; state.Server is one. It answers from memory.
type Tenants interface {
	Tenant(id string) (state.Tenant, error)
	Tenants() ([]state.Tenant, error)
}

// Leader brings requests to the control server that leads; forward.Forwarder is one.
type Leader interface {
	// Bring has the server that leads answer. here says that it is this one, and that nothing was done.
	Bring(w http.ResponseWriter, r *http.Request) (here bool, err error)
	// Receive wraps the handler for what other servers send. It believes what they say of their clients.
	Receive(next http.Handler) http.Handler
	// Leave has what others send refused from now on, as by a server that does not lead.
	Leave()
}

// Peers are the other control servers; state.Server is one.
type Peers interface {
	// Requests is where other servers connect to send requests. nil: nowhere.
	Requests() net.Listener
	// Age is how long ago this server heard from the one that leads; ok is false where it never has.
	Age() (age time.Duration, ok bool)
	// HandOver gives the leadership to another server, where this one has it and there is another.
	HandOver() error
}

// Config of a Server. Lifecycle, Auth and Access are required; a resource whose part is nil answers 501.
type Config struct {
	Lifecycle Lifecycle
	Auth      Authenticator
	Access    Access
	Tenants   Tenants
	Policy    Policy // roles, bindings and tenants, as administrators change them
	// Decided is told every decision on a request, with the rule that decided or why there is none. nil: nobody is.
	Login     []api.AuthLink // that people can log in with
	Decided   func(r *http.Request, who auth.Identity, needs rbac.Permission, d rbac.Decision, err error)
	Templates Templates
	Builds    Builds
	Keys      Keys
	Links     *edge.Links // makes links to files; nil: none
	Edge      *edge.Edge  // the way to what runs in sandboxes; nil: none
	Fleet     Fleet
	Nodes     Nodes      // lets operators drain and mark nodes; nil: they cannot
	Rebalance Rebalancer // nil: nothing is planned or moved
	Watcher   Watcher
	Backups   Backups // nil: none are made here
	Servers   Servers // nil: none are shown
	// Leader and Peers are there where there are several servers. nil: this one is alone.
	Leader Leader
	Peers  Peers
	// Audit records changes and refusals. nil: nothing is recorded.
	Audit *audit.Log
	// Pools shows and changes the pools of warm sandboxes. nil: there are none.
	Pools Pools
	// Secrets keeps values of tenants that nodes put into requests. nil: there are none.
	Secrets Secrets
	// Quotas holds tenants to what they may use. nil: there are none.
	Quotas Quotas
	// Metrics is the sink that GET /v1/metrics shows, and that the server's own numbers go to. nil: one of its own.
	Metrics *Metrics
	// Ready returns why the service cannot serve, or nil. It is asked by every health check. nil: always ready.
	Ready func() error
	// Front is put before the API as a whole: what it keeps for itself never meets the API. nil: nothing.
	Front  func(api http.Handler) http.Handler
	Logger hclog.Logger

	CallTimeout   time.Duration // of a request that is no stream; 3 min
	HeaderTimeout time.Duration // until a request's header is complete; 10 s
	BodyTimeout   time.Duration // until a JSON body is complete, and between two reads of an upload; 30 s
	WriteTimeout  time.Duration // for one write to a client that streams; 60 s
	DrainTimeout  time.Duration // for requests that are under way when Run ends; 10 s
	BeatInterval  time.Duration // between signs of life of an event stream; 10 s
}

// Server serves the API. Make it with New.
type Server struct {
	cfg     Config
	log     hclog.Logger
	metrics *Metrics
	started time.Time
	mux     *http.ServeMux
	handler http.Handler

	closing   context.Context // ends when Run begins to end; streams stop then
	close     context.CancelFunc
	terminals terminals
	tickets   *tickets

	here    calls // that this server answers because it leads
	streams calls // on connections that were taken over from net/http, for whose end it does not wait
}

// New returns a server that is ready to be asked for its Handler or to Run.
func New(cfg Config) (*Server, error) {
	if cfg.Lifecycle == nil || cfg.Auth == nil || cfg.Access == nil {
		return nil, errors.New("server: Lifecycle, Auth and Access are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics()
	}
	if cfg.Ready == nil {
		cfg.Ready = func() error { return nil }
	}
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&cfg.CallTimeout, 3 * time.Minute}, {&cfg.HeaderTimeout, 10 * time.Second}, {&cfg.BodyTimeout, 30 * time.Second},
		{&cfg.WriteTimeout, time.Minute}, {&cfg.DrainTimeout, 10 * time.Second},
		{&cfg.BeatInterval, 10 * time.Second},
	} {
		if *d.v < 0 {
			return nil, fmt.Errorf("server: negative timeout %s", *d.v)
		}
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	s := &Server{cfg: cfg, log: cfg.Logger, metrics: cfg.Metrics, started: time.Now(), mux: http.NewServeMux(),
		terminals: terminals{writers: map[api.TerminalID]int{}}, tickets: newTickets()}
	s.closing, s.close = context.WithCancel(context.Background())
	for _, rt := range s.routes() {
		s.mux.Handle(rt.pattern, s.endpoint(rt))
	}
	s.mux.HandleFunc("/", s.unknown)
	s.handler = s.chain(s.mux)
	if cfg.Front != nil {
		s.handler = cfg.Front(s.handler)
	}
	return s, nil
}

// Handler returns the whole API as a handler.
func (s *Server) Handler() http.Handler { return s.handler }

// Metrics returns the sink that GET /v1/metrics shows.
func (s *Server) Metrics() metrics.MetricSink { return s.metrics }
