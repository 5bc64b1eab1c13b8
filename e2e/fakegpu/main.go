// Command fakegpu is a device plugin of Nomad for tests: it offers every device node of a folder as a soulbox/gpu/fake.
//
// It owns nothing: who starts the agent makes the nodes. A reservation is the node as /dev/gpu0 and so on, the folder "driver" beside the nodes, and
// a variable that names the devices.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/plugins"
	"github.com/hashicorp/nomad/plugins/base"
	"github.com/hashicorp/nomad/plugins/device"
	"github.com/hashicorp/nomad/plugins/shared/hclspec"
	"github.com/hashicorp/nomad/plugins/shared/structs"
)

// The offer.
const (
	vendor, kind, model = "soulbox", "gpu", "fake"
	memoryMiB           = 4096

	visible = "FAKE_VISIBLE_DEVICES"
	drivers = "driver"
)

func main() {
	plugins.Serve(func(hclog.Logger) any { return &plugin{} })
}

type plugin struct{ dir string }

var _ device.DevicePlugin = (*plugin)(nil)

func (*plugin) PluginInfo() (*base.PluginInfoResponse, error) {
	return &base.PluginInfoResponse{
		Type: base.PluginTypeDevice, PluginApiVersions: []string{device.ApiVersion010}, PluginVersion: "0.1.0", Name: "fakegpu",
	}, nil
}

func (*plugin) ConfigSchema() (*hclspec.Spec, error) {
	return hclspec.NewObject(map[string]*hclspec.Spec{"dir": hclspec.NewAttr("dir", "string", true)}), nil
}

func (p *plugin) SetConfig(c *base.Config) error {
	var config struct {
		Dir string `codec:"dir"`
	}
	if err := base.MsgPackDecode(c.PluginConfig, &config); err != nil {
		return err
	}
	p.dir = config.Dir
	return nil
}

func (p *plugin) nodes() (names []string, err error) {
	entries, err := os.ReadDir(p.dir)
	for _, e := range entries {
		if e.Type()&os.ModeCharDevice != 0 {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Fingerprint tells of the devices once: they do not change.
func (p *plugin) Fingerprint(ctx context.Context) (<-chan *device.FingerprintResponse, error) {
	names, err := p.nodes()
	if err != nil {
		return nil, err
	}
	g := &device.DeviceGroup{
		Vendor: vendor, Type: kind, Name: model, Attributes: map[string]*structs.Attribute{"memory": structs.NewIntAttribute(memoryMiB, "MiB")},
	}
	for _, name := range names {
		g.Devices = append(g.Devices, &device.Device{ID: name, Healthy: true})
	}
	told := make(chan *device.FingerprintResponse, 1)
	told <- device.NewFingerprint(g)
	go func() {
		defer close(told)
		<-ctx.Done()
	}()
	return told, nil
}

func (p *plugin) Reserve(ids []string) (*device.ContainerReservation, error) {
	names, err := p.nodes()
	if err != nil {
		return nil, err
	}
	r := &device.ContainerReservation{
		Envs:   map[string]string{visible: strings.Join(ids, ",")},
		Mounts: []*device.Mount{{HostPath: filepath.Join(p.dir, drivers), TaskPath: "/opt/fakegpu", ReadOnly: true}},
	}
	for i, id := range ids {
		if !slices.Contains(names, id) {
			return nil, fmt.Errorf("device %q is unknown", id)
		}
		r.Devices = append(r.Devices, &device.DeviceSpec{HostPath: filepath.Join(p.dir, id), TaskPath: fmt.Sprintf("/dev/gpu%d", i), CgroupPerms: "rwm"})
	}
	return r, nil
}

// Stats has nothing to tell.
func (*plugin) Stats(ctx context.Context, _ time.Duration) (<-chan *device.StatsResponse, error) {
	none := make(chan *device.StatsResponse)
	go func() {
		defer close(none)
		<-ctx.Done()
	}()
	return none, nil
}
