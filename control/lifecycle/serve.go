package lifecycle

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// How long a create waits for what its template starts, and how often it looks.
const (
	serveTime = 30 * time.Second
	serveGap  = 50 * time.Millisecond
)

// serveTag is the tag of the process that a template starts.
const serveTag = "start"

// serve starts what a template starts with each of its sandboxes, and waits until it serves.
func (s *Service) serve(ctx context.Context, sb state.Sandbox, t state.Template) error {
	if t.StartCmd == "" {
		return nil
	}
	node, err := s.cfg.Fleet.Client(sb.Node)
	if err != nil {
		return err
	}
	return Serve(ctx, node, sb.ID, t)
}

// Serve starts what a template starts with each of its sandboxes in one that runs on a node, and waits until it serves.
func Serve(ctx context.Context, node *nodeapi.Client, id api.SandboxID, t state.Template) error {
	if t.StartCmd == "" {
		return nil
	}
	shell := func(command, tag string) nodeapi.ExecRequest {
		return nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"/bin/bash", "-l", "-c", command}, Tag: tag}}
	}
	if _, err := node.Start(ctx, id, shell(t.StartCmd, serveTag)); err != nil {
		return fmt.Errorf("start command of template %s: %w", t.Name, err)
	}
	if t.ReadyCmd == "" {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, serveTime)
	defer cancel()
	for {
		exit, err := node.Run(within, id, shell(t.ReadyCmd, ""), nil, nil, nil)
		switch {
		case err == nil && exit.Code == 0 && exit.Signal == 0:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case within.Err() != nil:
			return api.Errorf(http.StatusGatewayTimeout, "sandbox_start_timeout", "the ready command of template %s did not succeed within %s", t.Name, serveTime)
		case err != nil:
			return fmt.Errorf("ready command of template %s: %w", t.Name, err)
		}
		select {
		case <-within.Done():
		case <-time.After(serveGap):
		}
	}
}

// asBuilt fills in what a template's build says of its sandboxes, where the client does not. asked is what the client said.
func asBuilt(p *CreateParams, asked CreateParams, t state.Template) {
	if asked.CPUMillis == 0 && t.CPUMillis > 0 {
		p.CPUMillis = t.CPUMillis
	}
	if asked.MemoryMB == 0 && t.MemoryMB > 0 {
		p.MemoryMB = t.MemoryMB
	}
}
