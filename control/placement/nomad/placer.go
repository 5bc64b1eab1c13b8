// Package nomad places sandboxes through Nomad: a parameterized job for each size, and one dispatch, with one allocation,
// for each sandbox.
//
// It owns the jobs whose names start with its prefix, and is the only package of the project that speaks to Nomad's API.
// It never waits for the status of an allocation to learn that a sandbox runs (Nomad tells it up to a second late; the node
// reports it), only to learn why one cannot run. Which node a sandbox is on, and when it ends for good, is for the control
// service to say: the jobs make Nomad neither restart nor move nor replace one by itself. DESIGN.md tells why.
package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/placement"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// MaxPayload is Nomad's limit for the payload of a dispatch, in bytes.
const MaxPayload = 16 << 10

// callTimeout bounds every call of Nomad that does not wait for a change.
const callTimeout = 10 * time.Second

// Config says where Nomad is and how sandboxes are to be placed. The zero value of each field means its default.
type Config struct {
	Address   string // "http://127.0.0.1:4646"; default: NOMAD_ADDR, else that
	Token     string // secret id of an ACL token with submit-job, dispatch-job, read-job and list-jobs; default: NOMAD_TOKEN
	Region    string // default: the agent's
	Namespace string // default: Nomad's "default"
	TLS       *nomadapi.TLSConfig

	// Prefix starts the names of all jobs. Everything under it belongs to this control service: two services that share
	// a namespace need two prefixes. Default "soulbox-sandbox".
	Prefix      string
	NodePool    string   // default: Nomad's "default"
	Datacenters []string // default: all
	Priority    int      // of the jobs, 1..100; default 50
	// MHzPerCore is what a whole core of a sandbox counts in Nomad's account of a node's cpu. Below a real core's clock
	// rate, sandboxes share cores; their hard limit stays what was asked for. Default 1000.
	MHzPerCore  int
	KillTimeout time.Duration // from the driver's signal to its kill; default 5 s
	Driver      string        // default "soulbox"
	Logger      hclog.Logger

	taskConfig map[string]any // of Driver; tests run other drivers than ours
}

// Placer is a placement.Placer and a placement.Watcher.
type Placer struct {
	cfg    Config
	client *nomadapi.Client
	log    hclog.Logger

	mu      sync.Mutex
	parents map[class]*registration
	known   map[api.SandboxID]*dispatch
}

var (
	_ placement.Placer  = (*Placer)(nil)
	_ placement.Watcher = (*Placer)(nil)
)

// New returns a placer. It does not speak to Nomad yet.
func New(cfg Config) (*Placer, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	client, err := nomadapi.NewClient(&nomadapi.Config{
		Address: cfg.Address, SecretID: cfg.Token, Region: cfg.Region, Namespace: cfg.Namespace, TLSConfig: cfg.TLS,
	})
	if err != nil {
		return nil, fmt.Errorf("nomad client: %w", err)
	}
	return &Placer{
		cfg: cfg, client: client, log: cfg.Logger,
		parents: map[class]*registration{}, known: map[api.SandboxID]*dispatch{},
	}, nil
}

// Close lets go of idle connections.
func (p *Placer) Close() { p.client.Close() }

// Place dispatches req's job. The dispatch goes on when ctx ends before Nomad has answered; Stop waits for it.
func (p *Placer) Place(ctx context.Context, req placement.Request) error {
	id, err := api.ParseSandboxID(string(req.Node.ID))
	if err != nil || id != req.Node.ID {
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "sandbox id %.40q is not valid", req.Node.ID)
	}
	payload, err := encode(&req.Node)
	if err != nil {
		return err
	}
	c := classOf(req.Node.Limits, req.On)
	if req.Dedicated {
		c.tenant = req.Tenant
	}
	c.rules, c.prefer = req.Rules, req.Prefer
	if prio := c.rules.Placement().Priority; prio > p.cfg.Priority {
		return api.Errorf(http.StatusBadRequest, api.CodeInvalid, "placement.priority is %d, and sandboxes may have at most %d here", prio, p.cfg.Priority)
	}
	d := p.begin(ctx, id, c, payload)
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return fmt.Errorf("place sandbox %s: %w", id, ctx.Err())
	}
}

// Stop purges the sandbox's job. Nomad then ends its allocation.
func (p *Placer) Stop(ctx context.Context, id api.SandboxID) error {
	p.mu.Lock()
	d := p.known[id]
	p.mu.Unlock()
	if d != nil {
		select {
		case <-d.done: // or its dispatch may follow the purge
		case <-ctx.Done():
			return fmt.Errorf("stop sandbox %s: %w", id, ctx.Err())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	jobs, err := p.jobsOf(ctx, id, d)
	if err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	for _, job := range jobs {
		if err := p.purge(ctx, job); err != nil {
			return fmt.Errorf("stop sandbox %s: %w", id, err)
		}
	}
	p.mu.Lock()
	if p.known[id] == d {
		delete(p.known, id)
	}
	p.mu.Unlock()
	return nil
}

func (p *Placer) purge(ctx context.Context, jobID string) error {
	_, _, err := p.client.Jobs().Deregister(jobID, true, p.write(ctx))
	if isNotFound(err) {
		return nil
	}
	return mapError(err)
}

// encode returns the payload of a dispatch, or an error that says what makes it too long.
func encode(req *nodeapi.CreateRequest) ([]byte, error) {
	payload, err := json.Marshal(req)
	if err != nil {
		return nil, api.Errorf(http.StatusBadRequest, api.CodeInvalid, "sandbox %s: %v", req.ID, err)
	}
	if len(payload) <= MaxPayload {
		return payload, nil
	}
	size := func(v any) int {
		b, err := json.Marshal(v)
		if err != nil {
			return 0
		}
		return len(b)
	}
	return nil, api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge,
		"sandbox %s: its description is %d bytes long, of which envVars %d, metadata %d and the command %d; at most %d bytes fit",
		req.ID, len(payload), size(req.Env), size(req.Metadata), size(req.Main), MaxPayload)
}

func (p *Placer) write(ctx context.Context) *nomadapi.WriteOptions {
	return (&nomadapi.WriteOptions{}).WithContext(ctx)
}

func (p *Placer) query(ctx context.Context) *nomadapi.QueryOptions {
	return (&nomadapi.QueryOptions{}).WithContext(ctx)
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = "soulbox-sandbox"
	}
	if len(c.Datacenters) == 0 {
		c.Datacenters = []string{"*"}
	}
	if c.Priority == 0 {
		c.Priority = 50
	}
	if c.MHzPerCore == 0 {
		c.MHzPerCore = 1000
	}
	if c.KillTimeout == 0 {
		c.KillTimeout = 5 * time.Second
	}
	if c.Driver == "" {
		c.Driver = DriverName
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.taskConfig == nil {
		// Nomad forgets an empty config block and then finds that the task has none. The driver looks into the payload
		// only; were there none, this is no name of a template.
		c.taskConfig = map[string]any{"template": "(in " + PayloadFile + ")"}
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	for _, r := range c.Prefix {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			errs = append(errs, fmt.Errorf("prefix %q: only a-z, 0-9, - and _ are allowed", c.Prefix))
			break
		}
	}
	if c.Priority < 1 || c.Priority > 100 {
		errs = append(errs, fmt.Errorf("priority %d is not in 1..100", c.Priority))
	}
	if c.MHzPerCore < 1 {
		errs = append(errs, fmt.Errorf("MHz per core %d is less than 1", c.MHzPerCore))
	}
	if c.KillTimeout < 0 {
		errs = append(errs, fmt.Errorf("kill timeout %s is negative", c.KillTimeout))
	}
	return errors.Join(errs...)
}
