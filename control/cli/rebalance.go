package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

func nodeRebalanceCommand(env *Env) *command {
	var (
		dry           bool
		moves, atOnce int64
		classes       string
	)
	return apiCommand(env, "Even out the nodes", "[options]",
		"Moves sandboxes from full nodes to empty ones, as a drain does: with their processes, memory and files, while their requests wait. "+
			"It plans by what they will use in the next 15 minutes, and says of each move by how many percentage points it lowers the spread of the nodes' loads. "+
			"With -dry-run it says so and moves nothing.", 0, 0,
		func(o *options) {
			o.Switch(&dry, "dry-run", "Show the nodes and the plan, and move nothing.")
			o.Int(&moves, "moves", "number", "Moves, at most.", 1)
			o.Int(&atOnce, "at-once", "number", "Moves at a time.", 1)
			o.String(&classes, "classes", "list", "Classes whose sandboxes may be moved, with commas between them.", complete.PredictNothing)
		},
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			req := api.RebalanceRequest{Moves: int(moves), AtOnce: int(atOnce)}
			if classes != "" {
				req.Classes = strings.Split(classes, ",")
			}
			do := c.Rebalance
			if dry {
				do = c.ShowRebalance
			}
			out, err := do(ctx, req)
			return out, rebalanceRows(out), err
		})
}

func rebalanceRows(r api.Rebalance) [][]string {
	rows := [][]string{{"Node", "Load", "Reserved", "Used", "In 15 minutes", "Sandboxes", "New work"}}
	load := func(l api.Load) string {
		return fmt.Sprintf("%.1f cores, %d MiB", float64(l.CPUMillis)/1000, l.MemoryBytes>>20)
	}
	names := map[api.NodeID]string{}
	for _, n := range r.Nodes {
		names[n.ID] = n.Name
		work := "yes"
		if !n.TakesWork {
			work = "no"
		}
		rows = append(rows, []string{
			n.Name, fmt.Sprintf("%.1f %%", n.LoadPercent), load(n.Reserved), load(n.Used), load(n.Predicted), fmt.Sprintf("%d, %d movable", n.Sandboxes, n.Movable), work,
		})
	}
	rows = append(rows, []string{"spread", fmt.Sprintf("%.1f points, %.1f after", r.Spread, r.SpreadAfter)})
	for _, m := range r.Moves {
		what := "planned"
		switch {
		case m.Done:
			what = "done"
		case m.Error != "":
			what = m.Error
		}
		rows = append(rows, []string{string(m.Sandbox), fmt.Sprintf("%.1f points", m.Gain), names[m.From], "to", names[m.To], what})
	}
	return rows
}
