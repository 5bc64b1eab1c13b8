package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
)

func networkPublishCommand(env *Env) *command {
	var remove, asJSON bool
	return &command{
		synopsis: "Let a node listen for ports of a sandbox",
		usage:    "[options] <id> [[<node-port>:]<port>[/udp]...]",
		about: `
Publishes ports of a sandbox as plain TCP or UDP at its node, and prints where
they are; without ports it prints those that are published. Whoever reaches
the node reaches them: there is no key and no TLS but the server's own. They
end with the sandbox. The node's operator says which ports may be used. Where
the sandbox moves they are published at its new node: under the same number if
one was named, else under any that is free.

    $ soulbox network publish <id> 5432 53/udp
    $ soulbox network publish <id> 20080:80
    $ soulbox network publish -remove <id> 5432`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&remove, "remove", "Publish these ports no longer.")
			o.Switch(&asJSON, "json", "Print them as JSON.")
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) == 0 {
				return usagef("a sandbox is needed")
			}
			ids, err := sandboxIDs(args[:1], 1, 1)
			if err != nil {
				return err
			}
			var ports []api.PublishedPort
			for _, s := range args[1:] {
				p, err := parsePublished(s)
				if err != nil {
					return err
				}
				ports = append(ports, p)
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			list, err := publish(ctx, client, ids[0], ports, remove)
			if err != nil {
				return fmt.Errorf("ports of sandbox %s: %w", ids[0], err)
			}
			return showPublished(env, list, asJSON)
		},
	}
}

// publish adds ports to those of a sandbox, or takes them away.
func publish(ctx context.Context, client *api.Client, id api.SandboxID, ports []api.PublishedPort, remove bool) ([]api.PublishedPort, error) {
	list, err := client.Published(ctx, id)
	if err != nil || len(ports) == 0 {
		return list, err
	}
	for i := range list {
		list[i].Node, list[i].Error = "", ""
	}
	for _, p := range ports {
		list = slices.DeleteFunc(list, func(have api.PublishedPort) bool { return have.Proto == p.Proto && have.Port == p.Port })
		if !remove {
			list = append(list, p)
		}
	}
	return client.SetPublished(ctx, id, list)
}

// parsePublished reads [NODE-PORT:]PORT[/udp].
func parsePublished(s string) (api.PublishedPort, error) {
	p := api.PublishedPort{Proto: "tcp"}
	rest, proto, given := strings.Cut(s, "/")
	if given {
		p.Proto = proto
	}
	at, inside, both := strings.Cut(rest, ":")
	if !both {
		at, inside = "", rest
	}
	var err error
	if p.Port, err = strconv.Atoi(inside); err == nil && both {
		p.NodePort, err = strconv.Atoi(at)
	}
	if err != nil || p.Proto != "tcp" && p.Proto != "udp" {
		return p, usagef("port %.40q is not [<node-port>:]<port>[/udp]", s)
	}
	return p, nil
}

func showPublished(env *Env, list []api.PublishedPort, asJSON bool) error {
	if asJSON {
		return printJSON(env.Stdout, list)
	}
	var pairs [][]string
	for _, p := range list {
		host := "*"
		if p.Address.IsValid() {
			host = p.Address.String()
		}
		at := net.JoinHostPort(host, strconv.Itoa(p.NodePort))
		if p.Node != "" {
			at += " of " + string(p.Node)
		}
		if p.Error != "" {
			at = "not published: " + p.Error
		}
		pairs = append(pairs, []string{fmt.Sprintf("%d/%s", p.Port, p.Proto), at})
	}
	return printPairs(env.Stdout, pairs)
}
