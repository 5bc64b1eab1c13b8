package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
)

func networkJoinCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Put a sandbox into a private network of its tenant",
		usage:    "[options] <id> <network> [<name>]",
		about: `
Members of a private network reach each other, whatever they may reach
outside, and find each other by NAME or NAME.NETWORK. The name is the
sandbox's id where none is given. Members on other nodes are not reached.

    $ soulbox network join <id> backend db
    $ soulbox exec <other-id> -- psql -h db`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print the network as JSON.") },
		args:   sandboxNames(env, false),
		run: changeNetworks(env, &asJSON, 2, 3, func(list []api.NetworkMember, args []string) []api.NetworkMember {
			m := api.NetworkMember{Network: args[0]}
			if len(args) > 1 {
				m.Name = args[1]
			}
			return append(without(list, m.Network), m)
		}),
	}
}

func networkLeaveCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Take a sandbox out of a private network",
		usage:    "[options] <id> <network>",
		about: `
Takes a sandbox out of a private network. Its connections with those who stay
end.

    $ soulbox network leave <id> backend`,
		remote: true,
		flags:  func(o *options) { o.Switch(&asJSON, "json", "Print the network as JSON.") },
		args:   sandboxNames(env, false),
		run: changeNetworks(env, &asJSON, 2, 2, func(list []api.NetworkMember, args []string) []api.NetworkMember {
			return without(list, args[0])
		}),
	}
}

func without(list []api.NetworkMember, network string) []api.NetworkMember {
	return slices.DeleteFunc(list, func(m api.NetworkMember) bool { return m.Network == network })
}

// changeNetworks is the run of a command that makes new private networks of those that a sandbox is in.
func changeNetworks(
	env *Env, asJSON *bool, least, most int, change func([]api.NetworkMember, []string) []api.NetworkMember,
) func(context.Context, *connection, []string) error {
	return func(ctx context.Context, conn *connection, args []string) error {
		if len(args) < least || len(args) > most {
			return usagef("a sandbox and a network are needed")
		}
		ids, err := sandboxIDs(args[:1], 1, 1)
		if err != nil {
			return err
		}
		client, err := conn.client()
		if err != nil {
			return err
		}
		st, err := client.Network(ctx, ids[0])
		if err != nil {
			return fmt.Errorf("network of sandbox %s: %w", ids[0], err)
		}
		if st, err = client.JoinNetworks(ctx, ids[0], change(st.Joined, args[1:])); err != nil {
			return fmt.Errorf("network of sandbox %s: %w", ids[0], err)
		}
		return showNetwork(env, st, *asJSON)
	}
}
