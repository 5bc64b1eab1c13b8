// Package driver is Nomad's task driver "soulbox": it translates Nomad's driver RPCs to the API of the node daemon.
//
// It owns the plugin's name, schemas and capabilities, the mapping of a task to a sandbox, and the start of the daemon
// where none answers. It never touches a sandbox itself and keeps nothing that a killed plugin would lose: which sandbox
// belongs to a task is in the node's own record. nomad/plugins is the one part of Nomad that it builds on.
package driver

import (
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/hashicorp/nomad/plugins/drivers/fsisolation"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
)

// Name is the name of the driver in a job file.
const Name = "soulbox"

// PluginName is the name of the plugin's file and of its block in Nomad's client configuration.
const PluginName = "nomad-driver-soulbox"

// capabilities are what a job may ask of the driver. MountConfigs does not cross the plugin border in Nomad 1.11 (it is
// always read as "all"); it is stated all the same for versions in which it does.
var capabilities = &drivers.Capabilities{
	SendSignals: true,
	Exec:        true,
	FSIsolation: fsisolation.Image,
	// Mode host is that of a group with ports: what it means here is that the ports are the host's, and lead into the sandbox. Mode group is that of
	// bridge and cni: the ports are in the group's network namespace. It is also how Nomad asks for mode none, which the node refuses.
	NetIsolationModes: []drivers.NetIsolationMode{
		drivers.NetIsolationModeHost, drivers.NetIsolationModeGroup, drivers.NetIsolationModeTask, drivers.NetIsolationModeNone,
	},
	MountConfigs: drivers.MountConfigSupportNone,
}

// configSpec is the plugin block's config.
var configSpec = hclspec.NewObject(map[string]*hclspec.Spec{
	"socket": hclspec.NewDefault(
		hclspec.NewAttr("socket", "string", false), hclspec.NewLiteral(`"/run/soulbox/node.sock"`)),
	"node_config": hclspec.NewAttr("node_config", "string", false),
	"node_args":   hclspec.NewAttr("node_args", "list(string)", false),
	"node_log": hclspec.NewDefault(
		hclspec.NewAttr("node_log", "string", false), hclspec.NewLiteral(`"/var/log/soulbox-node.log"`)),
	"start_node": hclspec.NewDefault(
		hclspec.NewAttr("start_node", "bool", false), hclspec.NewLiteral("true")),
})

// taskConfigSpec is a task's config block.
var taskConfigSpec = hclspec.NewObject(map[string]*hclspec.Spec{
	"template": hclspec.NewAttr("template", "string", false),
	"command":  hclspec.NewAttr("command", "string", false),
	"args":     hclspec.NewAttr("args", "list(string)", false),
	"env":      hclspec.NewBlockAttrs("env", "string", false),
	"cwd":      hclspec.NewAttr("cwd", "string", false),
	"user":     hclspec.NewAttr("user", "string", false),
	"hostname": hclspec.NewAttr("hostname", "string", false),
	"profile":  hclspec.NewAttr("profile", "string", false),
	"deadline": hclspec.NewAttr("deadline", "string", false),
	"qos":      hclspec.NewAttr("qos", "string", false),
	"ports":    hclspec.NewAttr("ports", "list(string)", false),
	"limits": hclspec.NewBlock("limits", false, hclspec.NewObject(map[string]*hclspec.Spec{
		"cpu_millis": hclspec.NewAttr("cpu_millis", "number", false),
		"pids":       hclspec.NewAttr("pids", "number", false),
		"tmp_mb":     hclspec.NewAttr("tmp_mb", "number", false),
		"nofile":     hclspec.NewAttr("nofile", "number", false),

		"disk_mb":        hclspec.NewAttr("disk_mb", "number", false),
		"disk_inodes":    hclspec.NewAttr("disk_inodes", "number", false),
		"io_read_bytes":  hclspec.NewAttr("io_read_bytes", "number", false),
		"io_write_bytes": hclspec.NewAttr("io_write_bytes", "number", false),
		"io_read_ops":    hclspec.NewAttr("io_read_ops", "number", false),
		"io_write_ops":   hclspec.NewAttr("io_write_ops", "number", false),
	})),
})

// Config is the plugin block's config, decoded.
type Config struct {
	Socket     string   `codec:"socket"`      // the node's unix socket
	NodeConfig string   `codec:"node_config"` // configuration file of a daemon that the plugin starts
	NodeArgs   []string `codec:"node_args"`   // further arguments for it
	NodeLog    string   `codec:"node_log"`    // where its log goes
	StartNode  bool     `codec:"start_node"`  // start a daemon where none answers
}

// TaskConfig is a task's config block, decoded.
type TaskConfig struct {
	Template string            `codec:"template"`
	Command  string            `codec:"command"`
	Args     []string          `codec:"args"`
	Env      map[string]string `codec:"env"`
	Cwd      string            `codec:"cwd"`
	User     string            `codec:"user"`
	Hostname string            `codec:"hostname"`
	Profile  string            `codec:"profile"`
	Deadline string            `codec:"deadline"`
	QoS      string            `codec:"qos"`
	Ports    []string          `codec:"ports"` // labels of the group's ports that lead into this task
	Limits   TaskLimits        `codec:"limits"`
}

// TaskLimits are the limits beyond Nomad's own resources block. Zero means the node's default.
type TaskLimits struct {
	CPUMillis int64 `codec:"cpu_millis"` // hard limit in thousandths of a core; Nomad's cpu is a share only
	PIDs      int64 `codec:"pids"`
	TmpMB     int64 `codec:"tmp_mb"`
	NoFile    int64 `codec:"nofile"`

	DiskMB       int64 `codec:"disk_mb"`
	DiskInodes   int64 `codec:"disk_inodes"`
	IOReadBytes  int64 `codec:"io_read_bytes"` // per second, as the others of io
	IOWriteBytes int64 `codec:"io_write_bytes"`
	IOReadOps    int64 `codec:"io_read_ops"`
	IOWriteOps   int64 `codec:"io_write_ops"`
}

func pluginInfo(version string) *base.PluginInfoResponse {
	return &base.PluginInfoResponse{
		Type:              base.PluginTypeDriver,
		PluginApiVersions: []string{drivers.ApiVersion010},
		PluginVersion:     version,
		Name:              Name,
	}
}
