package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/session"
)

// maxSecretInput is how much is read of what shall be a value, in bytes: more than any service takes, whose own word on the length is shown.
const maxSecretInput = 1 << 20

func secretCommands() map[string]func(*Env) *command {
	return map[string]func(*Env) *command{
		"secret": secretCommand, "secret list": secretListCommand, "secret info": secretInfoCommand, "secret create": secretCreateCommand,
		"secret update": secretUpdateCommand, "secret delete": secretDeleteCommand,
	}
}

var secretCommand = group("secrets that rules put into requests",
	"    $ soulbox secret create openai < key\n    $ soulbox secret list")

func secretRows(list ...api.Secret) [][]string {
	rows := [][]string{{"ID", "Name", "Version", "Metadata", "Created", "Changed"}}
	now := time.Now()
	for _, s := range list {
		rows = append(rows, []string{s.SecretID, s.Name, strconv.FormatInt(s.CurrentVersion, 10), pairs(s.Metadata), ago(s.CreatedAt, now), ago(s.UpdatedAt, now)})
	}
	return rows
}

func secretListCommand(env *Env) *command {
	return apiCommand(env, "List secrets", "[options]", "Lists the secrets of the tenant, the newest first. Nothing tells a value.", 0, 0, nil,
		func(ctx context.Context, c *api.Client, _ []string) (any, [][]string, error) {
			list, err := c.Secrets(ctx)
			return list, secretRows(list...), err
		})
}

func secretInfoCommand(env *Env) *command {
	c := apiCommand(env, "Show a secret", "[options] <name>", "Shows what is known of a secret, by its name or id. Nothing tells its value.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			s, err := c.Secret(ctx, args[0])
			return s, secretRows(s), err
		})
	c.args = secretNames(env)
	return c
}

// aboutValue says where values come from.
const aboutValue = " The value is read from standard input, or from the file of -file, up to its end; one line end there does not count. " +
	"It is never an argument: lists of processes and the shell's history would show it."

func secretCreateCommand(env *Env) *command {
	s := api.NewSecret{}
	var file string
	return apiCommand(env, "Make a secret", "[options] <name> < value",
		"Keeps a value under a name. Header rules of sandboxes name it as ${e2b.secrets.<name>}."+aboutValue,
		1, 1, func(o *options) {
			valueFlag(o, &file)
			o.Pairs(&s.Metadata, "metadata", "What to tell of the secret. May be given many times.", nil)
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			var err error
			if s.Value, err = env.secretValue(file); err != nil {
				return nil, nil, err
			}
			s.Name = args[0]
			made, err := c.CreateSecret(ctx, s)
			return made, secretRows(made), err
		})
}

func secretUpdateCommand(env *Env) *command {
	var (
		v     api.SecretValue
		file  string
		clear bool
	)
	c := apiCommand(env, "Give a secret a new value", "[options] <name> < value",
		"Stores the next version of a secret, by its name or id. Running sandboxes whose rules name it get it at once; the version before is forgotten."+aboutValue,
		1, 1, func(o *options) {
			valueFlag(o, &file)
			o.Pairs(&v.Metadata, "metadata", "Replaces what was told of the secret. May be given many times. Without it all stays.", nil)
			o.Switch(&clear, "clear-metadata", "Take away what was told of the secret.")
		},
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			if clear && v.Metadata != nil {
				return nil, nil, usagef("-metadata and -clear-metadata exclude each other")
			}
			if clear {
				v.Metadata = map[string]string{}
			}
			var err error
			if v.Value, err = env.secretValue(file); err != nil {
				return nil, nil, err
			}
			s, err := c.UpdateSecret(ctx, args[0], v)
			return s, secretRows(s), err
		})
	c.args = secretNames(env)
	return c
}

func secretDeleteCommand(env *Env) *command {
	c := apiCommand(env, "Delete a secret", "<name>", "Forgets a secret, by its name or id. Requests of sandboxes whose rules name it are refused from then on.", 1, 1, nil,
		func(ctx context.Context, c *api.Client, args []string) (any, [][]string, error) {
			return nil, [][]string{{"Deleted secret " + args[0]}}, c.DeleteSecret(ctx, args[0])
		})
	c.args = secretNames(env)
	return c
}

func valueFlag(o *options, file *string) {
	*file = "-"
	o.String(file, "file", "<path>", "Where the value is. Default = -, which is standard input.", complete.PredictFiles("*"))
}

// secretValue reads a value. An error has nothing of it.
func (e *Env) secretValue(file string) (string, error) {
	if file == "-" && session.IsTerminal(e.Stdin) {
		return "", usagef("a terminal would show the value: bring it by a pipe, a redirection or -file")
	}
	in, err := e.open(file)
	if err != nil {
		return "", err
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxSecretInput+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("value of the secret: %w", err)
	case len(b) > maxSecretInput:
		return "", fmt.Errorf("value of the secret: it has more than %d bytes", maxSecretInput)
	}
	value, found := strings.CutSuffix(string(b), "\n")
	if found {
		value = strings.TrimSuffix(value, "\r")
	}
	switch {
	case value == "":
		return "", errors.New("value of the secret: it is empty")
	case !utf8.ValidString(value): // JSON would change it in silence
		return "", errors.New("value of the secret: it is no UTF-8 text")
	}
	return value, nil
}

// secretNames completes names of secrets.
func secretNames(env *Env) complete.Predictor {
	return predict(env, func(ctx context.Context, client *api.Client) []string {
		list, err := client.Secrets(ctx)
		if err != nil {
			return nil
		}
		names := make([]string, 0, len(list))
		for _, s := range list {
			names = append(names, s.Name)
		}
		return names
	})
}
