package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

func authCommand(*Env) *command {
	return &command{
		synopsis: "Who you are for the service, and what you may do",
		usage:    "<subcommand> [options] [args]",
		about: `
Groups the commands about the caller's own rights.

    $ soulbox auth whoami
    $ soulbox auth can-i execute sandbox`,
	}
}

func authWhoamiCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show who you are for the service",
		usage:    "[options]",
		about:    "\nShows what the service knows of the caller: tenant and roles.",
		remote:   true,
		flags:    func(o *options) { o.Switch(&asJSON, "json", "Print it as JSON.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			who, err := client.Whoami(ctx)
			if err != nil {
				return fmt.Errorf("who you are: %w", err)
			}
			if asJSON {
				return printJSON(env.Stdout, who)
			}
			return printPairs(env.Stdout, [][]string{
				{"User", who.User}, {"Name", who.Name}, {"Tenant", who.Tenant}, {"Roles", strings.Join(who.Roles, ", ")}, {"Scope", scopeText(who.Scope)},
				{"Groups", strings.Join(who.Groups, ", ")}, {"Tenants", strings.Join(who.Tenants, ", ")}, {"Link", who.Link},
			})
		},
	}
}

func authCanICommand(env *Env) *command {
	var asJSON bool
	var q api.ExplainRequest
	return &command{
		synopsis: "Ask whether you may do something, and which rule decides",
		usage:    "[options] <action> <resource>",
		about: `
Asks whether the caller may do something. The actions are create, read,
update, delete, execute, connect and admin; the resources sandbox, template,
snapshot, volume, file, network, secret, pool, tenant, quota, node, key, audit
and system. The command ends with 1 where the answer is no.

    $ soulbox auth can-i delete sandbox -id i0123456789abcdefghij
    $ soulbox auth can-i read file -id i0123456789abcdefghij -path /etc/passwd`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the answer as JSON.")
			o.String(&q.ID, "id", "<id>", "Id of the object that is meant. Labels and owner of a sandbox are looked up.", complete.PredictAnything)
			o.String(&q.Name, "name", "<name>", "Name of the object, such as a sandbox's template.", complete.PredictAnything)
			o.String(&q.Path, "path", "<path>", "Path of a file.", complete.PredictAnything)
			o.Pairs(&q.Labels, "label", "Label of the object, as name=value. Can be given more than once.", nil)
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) != 2 {
				return usagef("the command takes an action and a resource, not %d arguments", len(args))
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			q.Action, q.Resource = args[0], args[1]
			e, err := client.Explain(ctx, q)
			if err != nil {
				return fmt.Errorf("ask for %s on %s: %w", args[0], args[1], err)
			}
			answer := "no"
			if e.Allowed {
				answer = "yes"
			}
			if e.Depends {
				answer += ", for some"
			}
			if asJSON {
				err = printJSON(env.Stdout, e)
			} else {
				_, err = fmt.Fprintf(env.Stdout, "%s: %s\n", answer, printable(e.Reason))
			}
			if err == nil && !e.Allowed {
				return exitCode(1)
			}
			return err
		},
	}
}

func scopeText(s string) string {
	if s == api.Everywhere {
		return "all tenants"
	}
	return s
}
