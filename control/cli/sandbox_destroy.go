package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/session"
)

// destroyers is how many sandboxes are ended at the same time.
const destroyers = 8

func sandboxDestroyCommand(env *Env) *command {
	var all, yes bool
	return &command{
		synopsis: "End sandboxes",
		usage:    "[options] <id>...",
		about: `
Ends sandboxes and everything in them. It returns once they have ended.

    $ soulbox sandbox destroy <id> <id>
    $ soulbox sandbox destroy -all`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&all, "all", "End every sandbox that the API key can see. Asks first.")
			o.Switch(&yes, "yes", "Do not ask.")
			o.alias("y", &yes)
		},
		args: sandboxNames(env, false),
		run: func(ctx context.Context, conn *connection, args []string) error {
			if all && len(args) > 0 {
				return usagef("-all and ids do not go together")
			}
			least := 1
			if all {
				least = 0
			}
			ids, err := sandboxIDs(args, least, 0)
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			if all {
				list, _, err := collect(ctx, client, api.ListOptions{}, 0)
				if err != nil {
					return fmt.Errorf("list sandboxes: %w", err)
				}
				for _, s := range list {
					ids = append(ids, s.ID)
				}
				if len(ids) == 0 {
					_, err := fmt.Fprintln(env.Stdout, "No sandboxes")
					return err
				}
				if !yes {
					if err := confirm(env, fmt.Sprintf("End %d sandboxes?", len(ids))); err != nil {
						return err
					}
				}
			}
			return destroy(ctx, env, client, ids)
		},
	}
}

// destroy ends all of ids and says so of each.
func destroy(ctx context.Context, env *Env, client *api.Client, ids []api.SandboxID) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex // of the output and errs
		failed []error
		work   = make(chan api.SandboxID)
	)
	for range min(destroyers, len(ids)) {
		wg.Go(func() {
			for id := range work {
				err := client.DeleteSandbox(ctx, id)
				mu.Lock()
				if err != nil {
					failed = append(failed, fmt.Errorf("destroy sandbox %s: %w", id, err))
				} else {
					fmt.Fprintf(env.Stdout, "Destroyed sandbox %s\n", id)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		work <- id
	}
	close(work)
	wg.Wait()
	return errors.Join(failed...)
}

// errDeclined is the answer no.
var errDeclined = errors.New("nothing was done")

// confirm asks a question at the terminal. Without one it refuses.
func confirm(env *Env, question string) error {
	if !session.IsTerminal(env.Stdin) {
		return errors.New("there is nobody to ask: -yes does it without a question")
	}
	fmt.Fprintf(env.Stdout, "%s [y/N] ", question)
	line, err := bufio.NewReader(env.Stdin).ReadString('\n')
	if err != nil {
		fmt.Fprintln(env.Stdout)
		return errDeclined
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errDeclined
}
