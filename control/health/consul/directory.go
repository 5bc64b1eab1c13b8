// Package consul is the directory of nodes that Consul's catalog holds: every instance of the service that nodes register
// as, with what its health checks say.
//
// It owns one blocking query and the view in memory, and is the only package of the control service that speaks to Consul.
// It never registers anything; a node does that itself, through the agent on its machine.
package consul

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/health"
)

// Service is the name under which nodes register.
const Service = "soulbox-node"

// Config says where Consul is. Zero values mean the defaults.
type Config struct {
	Address    string // of an agent: "127.0.0.1:8500" or a URL; default: CONSUL_HTTP_ADDR, else that
	Token      string // with service:read and node:read; default: CONSUL_HTTP_TOKEN
	Datacenter string // default: the agent's
	Service    string // default "soulbox-node"
	Logger     hclog.Logger

	WaitTime time.Duration // of one blocking query; 1 min
	RetryMin time.Duration // before the first new attempt; 100 ms
	RetryMax time.Duration // between later ones; 5 s
}

// Directory follows Consul's catalog. The caller closes it.
type Directory struct {
	cfg    Config
	client *consulapi.Client
	log    hclog.Logger
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	view    health.View   // Index 0: nothing is known yet
	fresh   []health.Node // as Consul last told
	reached time.Time     // when it did
	err     error         // why it cannot be reached now
	changed chan struct{} // closed at the next change of what is above
}

var _ health.Directory = (*Directory)(nil)

// Open starts to follow the catalog. It does not wait for an answer.
func Open(cfg Config) (*Directory, error) {
	if cfg.Service == "" {
		cfg.Service = Service
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&cfg.WaitTime, time.Minute)
	set(&cfg.RetryMin, 100*time.Millisecond)
	set(&cfg.RetryMax, 5*time.Second)

	conf := consulapi.DefaultConfig()
	if cfg.Address != "" {
		conf.Address = cfg.Address
	}
	if cfg.Token != "" {
		conf.Token = cfg.Token
	}
	conf.Datacenter = cfg.Datacenter
	// A dead agent that drops packets instead of refusing them must be noticed too. Consul adds up to a sixteenth of the
	// wait time to a blocking query.
	transport := conf.Transport
	transport.ResponseHeaderTimeout = cfg.WaitTime + cfg.WaitTime/16 + 10*time.Second
	client, err := consulapi.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("consul client: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &Directory{
		cfg: cfg, client: client, log: cfg.Logger, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{}),
	}
	go func() {
		defer close(d.done)
		defer transport.CloseIdleConnections()
		d.follow(ctx)
	}()
	return d, nil
}

// Close ends the query and waits for it. Waiters of Nodes end with their own contexts.
func (d *Directory) Close() {
	d.cancel()
	<-d.done
}

// Nodes implements health.Directory. Before Consul has ever answered it returns an error that says why, once there is one.
func (d *Directory) Nodes(ctx context.Context, after uint64) (health.View, error) {
	for {
		d.mu.Lock()
		view, err, changed := d.view, d.err, d.changed
		d.mu.Unlock()
		if view.Index > after {
			view.Nodes = slices.Clone(view.Nodes)
			return view, nil
		}
		if view.Index == 0 && err != nil {
			return health.View{}, api.Errorf(http.StatusServiceUnavailable, api.CodeUnavailable,
				"consul has never been reached: %v", err)
		}
		select {
		case <-ctx.Done():
			return health.View{}, ctx.Err()
		case <-changed:
		}
	}
}

// follow asks Consul again and again, each time for what is newer than the last answer.
func (d *Directory) follow(ctx context.Context) {
	var index uint64
	retry := d.cfg.RetryMin
	for ctx.Err() == nil {
		q := (&consulapi.QueryOptions{WaitIndex: index, WaitTime: d.cfg.WaitTime}).WithContext(ctx)
		begin := time.Now()
		entries, meta, err := d.client.Health().Service(d.cfg.Service, "", false, q)
		if ctx.Err() != nil {
			return
		}
		if err == nil && !hasLeader(meta) {
			err = errors.New("its servers have no leader")
		}
		if err != nil {
			d.unreachable(err)
			index = 0 // the next answer shall come at once and tell that Consul is back
			if !wait(ctx, retry) {
				return
			}
			retry = min(2*retry, d.cfg.RetryMax)
			continue
		}
		retry = d.cfg.RetryMin
		d.learn(nodesOf(entries, d.log))
		// An index that goes backwards means that the servers' state was replaced; one of 0 would not block.
		if meta.LastIndex < index {
			index = 0
		} else {
			index = max(meta.LastIndex, 1)
		}
		// A catalog that changes all the time is read fifty times a second at most.
		if quick := 20*time.Millisecond - time.Since(begin); quick > 0 && !wait(ctx, quick) {
			return
		}
	}
}

func hasLeader(meta *consulapi.QueryMeta) bool { return meta.KnownLeader || meta.CacheHit }

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// learn takes an answer of Consul.
func (d *Directory) learn(nodes []health.Node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reached = time.Now()
	if d.err != nil {
		d.log.Info("consul is back", "nodes", len(nodes))
	}
	d.err = nil
	if d.view.Index != 0 && d.view.StaleSince.IsZero() && slices.Equal(d.fresh, nodes) {
		return
	}
	d.fresh = nodes
	d.publish(health.View{Nodes: nodes})
}

// unreachable keeps the last view. Nobody is critical because the directory is gone.
func (d *Directory) unreachable(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first := d.err == nil
	d.err = err
	if !first {
		return
	}
	d.log.Warn("consul cannot be reached; the last view of the nodes stays", "error", err, "nodes", len(d.fresh))
	if d.view.Index == 0 {
		close(d.changed)
		d.changed = make(chan struct{})
		return
	}
	nodes := slices.Clone(d.fresh)
	for i := range nodes {
		nodes[i].Status, nodes[i].Reason = health.Unknown, ""
	}
	d.publish(health.View{Nodes: nodes, StaleSince: d.reached})
}

// publish makes v the view. d.mu is held.
func (d *Directory) publish(v health.View) {
	v.Index = d.view.Index + 1
	d.view = v
	close(d.changed)
	d.changed = make(chan struct{})
}
