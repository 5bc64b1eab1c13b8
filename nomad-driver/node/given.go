package node

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// given is what a sandbox has of the host.
func given(devices []nodeapi.Device, mounts []nodeapi.Mount) sandbox.Given {
	var g sandbox.Given
	for _, d := range devices {
		g.Devices = append(g.Devices, sandbox.Device(d))
	}
	for _, m := range mounts {
		g.Mounts = append(g.Mounts, sandbox.Mount(m))
	}
	return g
}

// checkGiven checks what of the host a request names, and that nothing in it takes a checkpoint.
func checkGiven(req *nodeapi.CreateRequest) error {
	g := given(req.Devices, req.Mounts)
	if !g.Any() {
		return nil
	}
	if err := g.Check(); err != nil {
		return invalid("%v", err)
	}
	if req.Restore != nil {
		return invalid("devices: a sandbox that is made from a snapshot can have none")
	}
	if req.OnDeadline == nodeapi.DeadlinePauseFiles {
		return invalid("on_deadline: %s does not go with devices, which are its processes' to hold", req.OnDeadline)
	}
	return nil
}

// holdsNothing says why a sandbox cannot leave its processes, if it has something of the host: what they have open there is nowhere else.
func holdsNothing(sb nodeapi.Sandbox) error {
	g := given(sb.Devices, sb.Mounts)
	if !g.Any() {
		return nil
	}
	what := "files of the host"
	if len(g.Devices) > 0 {
		what = "the device " + g.Devices[0].Path
	}
	return api.Errorf(http.StatusConflict, nodeapi.CodeUncheckpointable, "sandbox %s has %s, which no checkpoint holds: it can be paused frozen", sb.ID, what)
}
