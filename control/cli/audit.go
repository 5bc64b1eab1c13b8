package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/audit"
)

var auditResults = []string{audit.ResultOK, audit.ResultStarted, audit.ResultDenied, audit.ResultFailed}

func auditCommands() map[string]func(*Env) *command {
	return map[string]func(*Env) *command{
		"audit": auditCommand, "audit list": auditListCommand, "audit follow": auditFollowCommand, "audit head": auditHeadCommand,
		"audit export": auditExportCommand, "audit verify": auditVerifyCommand,
	}
}

func auditCommand(*Env) *command {
	return &command{
		synopsis: "Read and verify the audit log",
		usage:    "<subcommand> [options] [args]",
		about: `
Every change and every refusal is an event in the audit log of the server that
it went through. The log is a chain that is signed: what is altered in it
afterwards is found.

    $ soulbox audit list -result=denied
    $ soulbox audit verify /var/lib/soulbox/server/audit`,
	}
}

// auditFilter declares the options that select events.
func auditFilter(o *options, f *api.AuditOptions) {
	when := func(p *time.Time) func(string) error {
		return func(s string) error {
			if d, err := time.ParseDuration(s); err == nil && d > 0 {
				*p = time.Now().Add(-d)
				return nil
			}
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return fmt.Errorf("%.40q is neither a time such as 2026-01-02T15:04:05Z nor a duration such as 2h", s)
			}
			*p = t
			return nil
		}
	}
	o.Func("after", "<time>", "Only from this time on, or for this long until now, such as 2h.", nil, when(&f.After))
	o.Func("before", "<time>", "Only until this time, or until so long ago.", nil, when(&f.Before))
	o.String(&f.Tenant, "tenant", "<name>", "Only of this tenant.", nil)
	o.String(&f.User, "user", "<user>", `Only by this user, such as "key:<id>".`, nil)
	o.String(&f.Action, "action", "<action>", `Only this action, such as "sandbox.create", or those that begin so: "sandbox.*".`, nil)
	o.String(&f.Resource, "resource", "<kind[/id]>", `Only about this kind of thing, or this one thing: "sandbox/<id>".`, nil)
	o.String(&f.Result, "result", "<result>", "Only with this result: "+strings.Join(auditResults, ", ")+".", complete.PredictSet(auditResults...))
	o.String(&f.Request, "request", "<id>", "Only of the request with this id.", nil)
}

func auditListCommand(env *Env) *command {
	var (
		f      api.AuditOptions
		limit  int64 = defaultList
		asJSON bool
	)
	return &command{
		synopsis: "List events of the audit log",
		usage:    "[options]",
		about: `
Lists events of the server that answers, the newest first. In a cluster each
server keeps a log of what was changed through it.

    $ soulbox audit list -after=1h -resource=sandbox/<id>`,
		remote: true,
		flags: func(o *options) {
			auditFilter(o, &f)
			o.Int(&limit, "limit", "<number>", fmt.Sprintf("Show at most so many. Default = %d.", defaultList), 1)
			o.Switch(&asJSON, "json", "Print the events as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			f.Limit = int(min(limit, 1000))
			list, more := []api.AuditEvent{}, false
			for e, err := range client.AllAudit(ctx, f) {
				if err != nil {
					return fmt.Errorf("list events: %w", err)
				}
				if more = len(list) == int(limit); more {
					break
				}
				list = append(list, e)
			}
			if asJSON {
				return printJSON(env.Stdout, list)
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(env.Stdout, "No events")
				return err
			}
			rows := [][]string{{"Index", "Time", "Result", "Action", "What", "Who", "Source", "Details"}}
			for _, e := range list {
				rows = append(rows, auditRow(e))
			}
			if err := printTable(env.Stdout, rows); err != nil {
				return err
			}
			if more {
				fmt.Fprintf(env.Stderr, "There are more: -limit shows them.\n")
			}
			return nil
		},
	}
}

func auditRow(e api.AuditEvent) []string {
	who := e.User
	if e.Tenant != "" {
		who = e.Tenant + " " + who
	}
	var details []string
	for _, k := range slices.Sorted(maps.Keys(e.Details)) {
		if k != "route" && k != "ms" {
			details = append(details, k+"="+e.Details[k])
		}
	}
	return []string{strconv.FormatUint(e.Index, 10), when(e.Time), e.Result, e.Action, e.ResourceID, who, e.Source, strings.Join(details, " ")}
}

func auditFollowCommand(env *Env) *command {
	var (
		f      api.AuditOptions
		asJSON bool
	)
	return &command{
		synopsis: "Show events as they happen",
		usage:    "[options]",
		about: `
Shows events from now on, as the server that answers stores them.

    $ soulbox audit follow -result=denied`,
		remote: true,
		flags: func(o *options) {
			auditFilter(o, &f)
			o.Switch(&asJSON, "json", "Print each event as a line of JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			err = client.FollowAudit(ctx, f, func(e api.AuditEvent) error {
				if asJSON {
					return json.NewEncoder(env.Stdout).Encode(e)
				}
				_, err := fmt.Fprintln(env.Stdout, printable(strings.Join(auditRow(e), "  ")))
				return err
			})
			return fmt.Errorf("follow events: %w", err)
		},
	}
}

func auditHeadCommand(env *Env) *command {
	return &command{
		synopsis: "Show how far the audit log goes, to keep it elsewhere",
		usage:    "[options]",
		about: `
Prints the newest signed head of the server that answers, and the public keys,
as JSON. Keep it on another machine: with it, "soulbox audit verify" finds a
log that was cut back together with its heads, or signed anew with other keys.

    $ soulbox audit head >head.json
    $ soulbox audit verify -head=head.json /var/lib/soulbox/server/audit`,
		remote: true,
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			st, err := client.AuditState(ctx)
			if err != nil {
				return fmt.Errorf("head of the audit log: %w", err)
			}
			return printJSON(env.Stdout, st)
		},
	}
}

func auditExportCommand(env *Env) *command {
	var f api.AuditOptions
	return &command{
		synopsis: "Write all events, one line of JSON each",
		usage:    "[options]",
		about: `
Writes the events of the server that answers, the oldest first, for other
programs. It is a copy of what they say, not of the chain: for that, copy the
server's audit folder.

    $ soulbox audit export -after=24h >events.ndjson`,
		remote: true,
		flags:  func(o *options) { auditFilter(o, &f) },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			f.Ascending, f.Limit = true, 1000
			enc := json.NewEncoder(env.Stdout)
			for e, err := range client.AllAudit(ctx, f) {
				if err != nil {
					return fmt.Errorf("export events: %w", err)
				}
				if err := enc.Encode(e); err != nil {
					return fmt.Errorf("export events: %w", err)
				}
			}
			return nil
		},
	}
}
