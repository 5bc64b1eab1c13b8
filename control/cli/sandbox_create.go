package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/project"
)

func sandboxCreateCommand(env *Env) *command {
	var (
		req             api.CreateRequest
		timeout         time.Duration
		size            sizeFlags
		metadata, vars  map[string]string
		asJSON, verbose bool
		quiet           bool
	)
	return &command{
		synopsis: "Make a sandbox",
		usage:    "[options] [-- <command> [args]]",
		about: `
Makes a sandbox and returns once it runs. What is not said with a flag comes
from the file soulbox.hcl of this folder, if there is one (see soulbox init),
then from the service's defaults.

With a command, the sandbox ends when the command ends, and soulbox logs -raw
shows its output:

    $ soulbox sandbox create -template=base -timeout=10m
    $ soulbox sandbox create -template=base -- python3 -m http.server`,
		remote: true,
		flags: func(o *options) {
			o.String(&req.Template, "template", "<name>", "Template to start from: its name, or its digest sha256:….", templateNames(env))
			size.add(o)
			placementFlags(o, &req.Placement)
			o.String(&req.QoS, "qos", "<class>", "Who gives way when the machine is short: guaranteed, burstable or best_effort.", complete.PredictSet(api.QoSGuaranteed, api.QoSBurstable, api.QoSBestEffort))
			o.Duration(&timeout, "timeout", "<duration>", "Time after which the sandbox is ended, such as 90s, 10m or 2h.")
			o.Pairs(&vars, "env", "Environment variable of every process in it. May be given many times. Without a value, that of this shell is taken.", func(k string) (string, bool) {
				v := env.Getenv(k)
				return v, v != ""
			})
			o.Pairs(&metadata, "metadata", "Label, for soulbox sandbox list -metadata. May be given many times.", nil)
			o.String(&req.User, "user", "<name>", "Default user of its processes.", nil)
			o.String(&req.Cwd, "cwd", "<path>", "Default working directory of its processes.", nil)
			o.String(&req.Hostname, "hostname", "<name>", "Host name inside.", nil)
			o.Switch(&verbose, "verbose", "Show how long each step of the start took.")
			o.Switch(&quiet, "quiet", "Print the id alone.")
			o.alias("q", &quiet)
			o.Switch(&asJSON, "json", "Print the sandbox as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			req.Command, req.Env, req.Metadata = args, vars, metadata
			if timeout > 0 {
				req.Timeout = seconds(timeout)
			}
			req.CPU, req.MemoryMB, req.DiskMB, req.PIDs, req.StorageLimits = size.cpu, size.memory, size.disk, size.pids, size.storage
			if err := fromProject(conn, &req); err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			// With an id of our own a create whose answer is lost can be found, and undone.
			req.ID = api.NewSandboxID()
			start := time.Now()
			created, err := client.CreateSandbox(ctx, req)
			total := time.Since(start)
			if err != nil {
				if ctx.Err() != nil {
					undo(client, req.ID)
				}
				return fmt.Errorf("create sandbox: %w", err)
			}
			switch {
			case asJSON:
				return printJSON(env.Stdout, created)
			case quiet:
				_, err := fmt.Fprintln(env.Stdout, created.ID)
				return err
			}
			if err := printPairs(env.Stdout, describe(created.Sandbox, time.Now())); err != nil {
				return err
			}
			if verbose {
				return printSteps(env, created.Steps, total)
			}
			return nil
		},
	}
}

// undo ends a sandbox whose creation was given up. It may not have been made at all.
func undo(client *api.Client, id api.SandboxID) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = client.DeleteSandbox(ctx, id) // its deadline ends it otherwise
}

// fromProject fills in what the flags left open: from the project file, then the template from the settings.
func fromProject(conn *connection, req *api.CreateRequest) error {
	p, ok, err := project.Load(conn.env.Dir)
	if err != nil {
		return err
	}
	if ok {
		fill(&req.Template, p.Template)
		fill(&req.User, p.User)
		fill(&req.Cwd, p.Cwd)
		fill(&req.Hostname, p.Hostname)
		if req.CPU == nil && p.CPU > 0 {
			req.CPU = &p.CPU
		}
		if req.MemoryMB == nil && p.Memory > 0 {
			req.MemoryMB = &p.Memory
		}
		if d, err := time.ParseDuration(p.Timeout); err == nil && req.Timeout == nil {
			req.Timeout = seconds(d)
		}
		req.Env, req.Metadata = merge(p.Env, req.Env), merge(p.Metadata, req.Metadata)
	}
	if req.Template == "" {
		req.Template, err = conn.template()
	}
	return err
}

func fill(p *string, v string) {
	if *p == "" {
		*p = v
	}
}

func merge(under, over map[string]string) map[string]string {
	if len(under) == 0 {
		return over
	}
	out := make(map[string]string, len(under)+len(over))
	for k, v := range under {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

func seconds(d time.Duration) *int64 {
	s := int64((d + time.Second - 1) / time.Second)
	return &s
}

// printSteps shows where the time of a start went. total is what this program waited.
func printSteps(env *Env, steps []api.Step, total time.Duration) error {
	rows := [][]string{{"Step", "Time", "Share"}}
	row := func(name string, d time.Duration) {
		rows = append(rows, []string{name, short(d), fmt.Sprintf("%.0f%%", 100*float64(d)/float64(max(total, 1)))})
	}
	for _, s := range steps {
		row(s.Name, s.Nanos)
	}
	row("request, in all", total)
	fmt.Fprintln(env.Stdout)
	return printTable(env.Stdout, rows)
}

// templateNames completes names of templates.
func templateNames(env *Env) complete.Predictor {
	return predict(env, func(ctx context.Context, client *api.Client) []string {
		list, err := client.Templates(ctx)
		if err != nil {
			return nil
		}
		names := make([]string, 0, len(list))
		for _, t := range list {
			names = append(names, t.Name)
		}
		return names
	})
}
