package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/nomad-driver/posture"
)

var nodeCommand = group("the machines that sandboxes run on",
	"    $ soulbox node list\n    $ soulbox node drain -reason='new kernel' 6f1c2a\n    $ sudo soulbox node audit")

func nodeRows(list ...api.Node) [][]string {
	rows := [][]string{{"ID", "Name", "Status", "Since", "Running", "Disk free", "Version", "Why"}}
	for _, n := range list {
		rows = append(rows, []string{
			string(n.ID), n.Name, n.Status, short(time.Since(n.StatusSince)), fmt.Sprintf("%d of %d", n.Running, n.MaxSandbox),
			fmt.Sprintf("%.1f GiB", float64(n.DiskFree)/(1<<30)), n.Version, n.Reason,
		})
	}
	return rows
}

// nodeFacts shows one node, a fact a line.
func nodeFacts(n api.Node) [][]string {
	rows := [][]string{
		{"ID", string(n.ID)}, {"Name", n.Name}, {"Address", n.Address}, {"Version", n.Version}, {"Kernel", n.Kernel},
		{"Status", n.Status + " for " + short(time.Since(n.StatusSince))},
	}
	if n.Reason != "" {
		rows = append(rows, []string{"Why", n.Reason})
	}
	if m := n.Mark; m != nil {
		rows = append(rows, []string{"Marked", fmt.Sprintf("%s by %s at %s: %s", m.Status, m.By, m.At.Format(time.RFC3339), m.Reason)})
	}
	rows = append(rows, []string{"Sandboxes", fmt.Sprintf("%d of %d", n.Running, n.MaxSandbox)})
	for _, c := range n.Checks {
		rows = append(rows, []string{"Check " + c.Name, c.Status + ": " + c.Output})
	}
	return rows
}

func nodeListCommand(env *Env) *command {
	return apiCommand(env, "List nodes", "[options]", "Lists the nodes with how each is, since when, and why.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.Nodes(ctx)
			return list, nodeRows(list...), err
		})
}

func nodeInfoCommand(env *Env) *command {
	return nodeVerb(env, "Show a node", "Shows how a node is, with a line of each thing that it needs.", nil,
		func(ctx context.Context, c *api.Client, id api.NodeID) (api.Node, error) { return c.Node(ctx, id) })
}

// nodeVerb is a command about one node, which may be called by its id, the beginning of it, or its name.
func nodeVerb(env *Env, synopsis, about string, flags func(*options), do func(context.Context, *api.Client, api.NodeID) (api.Node, error)) *command {
	return apiCommand(env, synopsis, "[options] <node>", about+" A node is called by its id, the beginning of it, or its name.", 1, 1, flags,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			id, err := findNode(ctx, c, args[0])
			if err != nil {
				return nil, nil, err
			}
			n, err := do(ctx, c, id)
			return n, nodeFacts(n), err
		})
}

// findNode returns the one node that is called so.
func findNode(ctx context.Context, c *api.Client, called string) (api.NodeID, error) {
	list, err := c.Nodes(ctx)
	if err != nil {
		return "", err
	}
	var found []api.NodeID
	for _, n := range list {
		if string(n.ID) == called {
			return n.ID, nil
		}
		if n.ID != "" && (n.Name == called || strings.HasPrefix(string(n.ID), called)) {
			found = append(found, n.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", api.Errorf(http.StatusNotFound, api.CodeNotFound, "node %.80q does not exist", called)
	case 1:
		return found[0], nil
	}
	return "", usagef("%q may be %d nodes: give more of the id", called, len(found))
}

func reasonFlag(reason *string) func(*options) {
	return func(o *options) {
		o.String(reason, "reason", "text", "Why, for whoever looks at the node.", complete.PredictNothing)
	}
}

func nodeDrainCommand(env *Env) *command {
	var reason string
	return nodeVerb(env, "Have a node emptied",
		"Has nothing new placed on a node, and what runs there move to others, where nodes share a snapshot store. What cannot move goes on. It stays so until resume.",
		reasonFlag(&reason), func(ctx context.Context, c *api.Client, id api.NodeID) (api.Node, error) {
			return c.DrainNode(ctx, id, reason)
		})
}

func nodeMarkCommand(env *Env) *command {
	var reason string
	return nodeVerb(env, "Call a node unhealthy",
		"Has nothing new placed on a node. What runs there stays. It stays so until resume.",
		reasonFlag(&reason), func(ctx context.Context, c *api.Client, id api.NodeID) (api.Node, error) {
			return c.MarkNode(ctx, id, reason)
		})
}

func nodeResumeCommand(env *Env) *command {
	return nodeVerb(env, "Use a node again", "Takes back what drain or mark have said about a node.", nil,
		func(ctx context.Context, c *api.Client, id api.NodeID) (api.Node, error) {
			return c.ResumeNode(ctx, id)
		})
}

func nodeAuditCommand(env *Env) *command {
	var asJSON, strict bool
	socket := "/run/soulbox/node.sock"
	var most int64 = 1000
	return &command{
		synopsis: "Say how well this machine holds hostile code",
		usage:    "[options]",
		about: `
Says what sandboxes of each profile may do, and why, and which weaknesses
this machine's kernel and settings have, with what stands in front of each. It
looks at this machine itself, and needs neither a node nor the service; as
root it sees more. See SECURITY.md for what no report can promise.`,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the report as JSON.")
			o.Switch(&strict, "strict", "End with exit code 1 when something is open.")
			o.String(&socket, "socket", "path", "The node's socket, whose rights are looked at.", complete.PredictFiles("*"))
			o.Int(&most, "max-sandboxes", "number", "How many sandboxes the node may run.", 1)
		},
		run: func(_ context.Context, _ *connection, args []string) error {
			if len(args) > 0 {
				return usagef("unexpected argument %q", args[0])
			}
			r, err := posture.Look(posture.Options{Version: version.Version, Socket: socket, MaxSandbox: int(most)})
			if err != nil {
				return fmt.Errorf("audit: %w", err)
			}
			if asJSON {
				err = printJSON(env.Stdout, r)
			} else {
				err = r.WriteText(env.Stdout)
			}
			if err == nil && strict && len(r.Open()) > 0 {
				return exitCode(1)
			}
			return err
		},
	}
}
