package driver

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	pstructs "github.com/hashicorp/nomad/plugins/shared/structs"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const fingerprintPeriod = 15 * time.Second

// Fingerprint reports the node's health and one attribute per kernel probe, at once and then periodically. It is also where
// the daemon is started: Nomad 1.11 has no other hook that runs once after the configuration is final.
func (d *Driver) Fingerprint(ctx context.Context) (<-chan *drivers.Fingerprint, error) {
	ch := make(chan *drivers.Fingerprint)
	go func() {
		defer close(ch)
		timer := time.NewTimer(0)
		defer timer.Stop()
		seen := map[string]bool{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-d.ctx.Done():
				return
			case <-timer.C:
			}
			select {
			case <-ctx.Done():
				return
			case <-d.ctx.Done():
				return
			case ch <- d.fingerprint(ctx, seen):
			}
			timer.Reset(fingerprintPeriod)
		}
	}()
	return ch, nil
}

// fingerprint asks the node once. seen collects the attributes sent so far: Nomad keeps an attribute until it is sent empty.
func (d *Driver) fingerprint(ctx context.Context, seen map[string]bool) *drivers.Fingerprint {
	if os.Geteuid() != 0 {
		return &drivers.Fingerprint{
			Health: drivers.HealthStateUndetected, HealthDescription: "the driver needs a Nomad client that runs as root",
		}
	}
	client, err := d.connect(ctx)
	if err != nil {
		return &drivers.Fingerprint{Health: drivers.HealthStateUnhealthy, HealthDescription: "node daemon does not answer"}
	}
	node, err := client.Node(ctx)
	if err != nil {
		return &drivers.Fingerprint{Health: drivers.HealthStateUnhealthy, HealthDescription: "node daemon does not answer"}
	}
	fp := &drivers.Fingerprint{
		Attributes:        attributes(node),
		Health:            drivers.HealthStateHealthy,
		HealthDescription: drivers.DriverHealthy,
	}
	if !node.Healthy {
		fp.Health = drivers.HealthStateUnhealthy
		fp.HealthDescription = node.Reason
	}
	for name := range seen {
		if fp.Attributes[name] == nil {
			fp.Attributes[name] = pstructs.NewStringAttribute("")
		}
	}
	for name := range fp.Attributes {
		seen[name] = true
	}
	return fp
}

// attributes names every attribute with the driver's prefix, which Nomad does not add itself.
func attributes(node nodeapi.Node) map[string]*pstructs.Attribute {
	const prefix = "driver." + Name + "."
	attrs := map[string]*pstructs.Attribute{
		prefix + "version":  pstructs.NewStringAttribute(node.Version),
		prefix + "node_id":  pstructs.NewStringAttribute(node.ID.String()),
		prefix + "kernel":   pstructs.NewStringAttribute(node.Kernel),
		prefix + "node_api": pstructs.NewIntAttribute(int64(node.APIVersion), ""),
	}
	if node.Address != "" {
		attrs[prefix+"address"] = pstructs.NewStringAttribute(node.Address)
	}
	for _, p := range node.Probes {
		attrs[prefix+"probe."+p.Name] = pstructs.NewBoolAttribute(p.OK)
	}
	for _, t := range node.Templates {
		attrs[prefix+"template."+strings.ReplaceAll(t.Name, ".", "_")] = pstructs.NewStringAttribute(t.Digest)
	}
	return attrs
}
