package driver

import (
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// reserved puts into a request what Nomad's device plugins have reserved for the task, and nothing else of the host. Nomad tells their mounts and
// those of volumes alike: where no device is, they are of volumes.
func reserved(req *nodeapi.CreateRequest, cfg *drivers.TaskConfig) error {
	req.Devices, req.Mounts = nil, nil
	for _, d := range cfg.Devices {
		// Nobody in a sandbox makes device nodes, whoever lets him.
		req.Devices = append(req.Devices, nodeapi.Device{Host: d.HostPath, Path: d.TaskPath, Access: access(d.Permissions)})
	}
	for _, m := range cfg.Mounts {
		if len(cfg.Devices) == 0 && len(cfg.DeviceEnv) == 0 {
			return fmt.Errorf("volume_mount to %q is not supported: a sandbox has no files of the host", m.TaskPath)
		}
		if !m.Readonly {
			return fmt.Errorf("mount of %s to %q is not supported: beside its devices a sandbox has files of the host for reading only", m.HostPath, m.TaskPath)
		}
		req.Mounts = append(req.Mounts, nodeapi.Mount{Host: m.HostPath, Path: m.TaskPath})
	}
	for k, v := range cfg.DeviceEnv {
		if _, ok := req.Env[k]; ok {
			continue // who asked for the sandbox has the last word
		}
		if req.Env == nil {
			req.Env = map[string]string{}
		}
		req.Env[k] = v
	}
	return nil
}

// access turns a device plugin's permissions, of "rwm", into what the node knows.
func access(permissions string) string {
	var a string
	for _, c := range []string{"r", "w"} {
		if strings.Contains(permissions, c) {
			a += c
		}
	}
	return a
}
