package driver

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/drivers/shared/eventer"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Driver implements Nomad's driver plugin. Nomad launches and ends it several times before it runs a task, and calls
// SetConfig without a driver configuration first: New and SetConfig have no side effects.
type Driver struct {
	ctx     context.Context
	logger  hclog.Logger
	version string
	events  *eventer.Eventer
	tasks   *taskStore

	mu      sync.Mutex
	config  Config
	node    *nodeapi.Client
	compute compute

	starting sync.Mutex // one start of the daemon at a time
}

var (
	_ drivers.DriverPlugin               = (*Driver)(nil)
	_ drivers.ExecTaskStreamingRawDriver = (*Driver)(nil)
)

// New returns the plugin. ctx ends with the plugin's process.
func New(ctx context.Context, logger hclog.Logger, version string) *Driver {
	logger = logger.Named(Name)
	return &Driver{
		ctx:     ctx,
		logger:  logger,
		version: version,
		events:  eventer.NewEventer(ctx, logger),
		tasks:   newTaskStore(),
	}
}

// PluginInfo tells Nomad who this is.
func (d *Driver) PluginInfo() (*base.PluginInfoResponse, error) { return pluginInfo(d.version), nil }

// ConfigSchema is the schema of the plugin block.
func (d *Driver) ConfigSchema() (*hclspec.Spec, error) { return configSpec, nil }

// TaskConfigSchema is the schema of a task's config block.
func (d *Driver) TaskConfigSchema() (*hclspec.Spec, error) { return taskConfigSpec, nil }

// Capabilities tells Nomad what tasks may ask for.
func (d *Driver) Capabilities() (*drivers.Capabilities, error) { return capabilities, nil }

// SetConfig takes the plugin block. It only checks and keeps it: the daemon is not asked for before Fingerprint, because
// Nomad also calls SetConfig to validate.
func (d *Driver) SetConfig(c *base.Config) error {
	var config Config
	if len(c.PluginConfig) != 0 {
		if err := base.MsgPackDecode(c.PluginConfig, &config); err != nil {
			return fmt.Errorf("plugin config: %w", err)
		}
	}
	if err := config.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config = config
	d.compute = computeOf(c.AgentConfig)
	if d.node == nil || d.node.Address() != config.Socket {
		d.node = nodeapi.NewUnix(config.Socket)
	}
	return nil
}

func (c *Config) validate() error {
	for _, f := range []struct{ name, path string }{
		{"socket", c.Socket}, {"node_log", c.NodeLog}, {"node_config", c.NodeConfig},
	} {
		if f.path != "" && !filepath.IsAbs(f.path) {
			return fmt.Errorf("plugin config: %s %q is not an absolute path", f.name, f.path)
		}
	}
	if c.Socket == "" {
		return fmt.Errorf("plugin config: socket is empty")
	}
	if len(c.Socket) > 107 {
		return fmt.Errorf("plugin config: socket is %d bytes long, the kernel takes at most 107", len(c.Socket))
	}
	return nil
}

func (d *Driver) settings() (Config, *nodeapi.Client, compute) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config, d.node, d.compute
}

// TaskEvents streams the events that slow steps of a task emit.
func (d *Driver) TaskEvents(ctx context.Context) (<-chan *drivers.TaskEvent, error) {
	return d.events.TaskEvents(ctx)
}
