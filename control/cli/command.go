package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"
)

// command is one command of the program. Its flags are declared once: help, completion and parsing come from there.
type command struct {
	env  *Env
	name string // set by commands

	synopsis string // one line
	usage    string // what follows the name: "[options] <id>"
	about    string // paragraphs of help, each line at most 78 characters
	remote   bool   // it speaks to the service: has the general options
	// literal stops the search for flags at the first argument that is none: what follows is another program's.
	literal bool
	flags   func(*options)     // declares its own flags
	args    complete.Predictor // of its arguments; nil: none
	// run does it. conn is for remote commands. An exitCode as error ends the program with it without a message.
	run func(ctx context.Context, conn *connection, args []string) error
}

var _ cli.CommandAutocomplete = (*command)(nil)

// exitCode is an error that is told already, or none at all: the program ends with that code.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Synopsis is for lists of commands.
func (c *command) Synopsis() string { return c.synopsis }

// Run parses args and does what they ask for.
func (c *command) Run(args []string) int {
	if c.run == nil {
		if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
			fmt.Fprintf(c.env.Stderr, "Error: there is no command %q below this one\n\n", printable(args[0]))
		}
		return cli.RunResultHelp
	}
	conn := &connection{env: c.env}
	o := c.options(conn)
	args, err := o.parse(args, c.literal)
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		defer conn.close()
		conn.release = stop
		err = c.run(conn.reads(ctx), conn, args)
		conn.sayAge()
		if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return 130 // as a shell does; who interrupted it knows why it ended
		}
	}
	return c.report(conn, err)
}

func (c *command) report(conn *connection, err error) int {
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintf(c.env.Stderr, "Error: %s\n", printable(err.Error()))
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(c.env.Stderr, "\nUsage: %s %s %s\nFor more: %s %s -help\n", Name, c.name, c.usage, Name, c.name)
	} else if h := hint(conn, err); h != "" {
		fmt.Fprintf(c.env.Stderr, "\n%s\n", h)
	}
	if c.literal {
		return execFailure(err)
	}
	return 1
}

func (c *command) options(conn *connection) *options {
	o := newOptions(c.name)
	if c.remote {
		conn.options(o)
	}
	o.own = len(o.list)
	if c.flags != nil {
		c.flags(o)
	}
	return o
}

// Help is the text of -help.
func (c *command) Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s %s %s\n", Name, c.name, c.usage)
	if about := strings.Trim(c.about, "\n"); about != "" {
		b.WriteByte('\n')
		for line := range strings.SplitSeq(about, "\n") {
			if line != "" {
				line = "  " + line
			}
			b.WriteString(line + "\n")
		}
	}
	o := c.options(&connection{env: c.env})
	o.help(&b, "General Options", o.list[:o.own])
	title := "Options"
	if word := strings.Fields(c.name); len(word) > 0 {
		title = strings.ToUpper(word[len(word)-1][:1]) + word[len(word)-1][1:] + " Options"
	}
	o.help(&b, title, o.list[o.own:])
	return strings.TrimRight(b.String(), "\n")
}

// AutocompleteArgs completes arguments.
func (c *command) AutocompleteArgs() complete.Predictor {
	if c.args == nil {
		return complete.PredictNothing
	}
	return c.args
}

// AutocompleteFlags completes flags and their values.
func (c *command) AutocompleteFlags() complete.Flags {
	flags := complete.Flags{}
	for _, f := range c.options(&connection{env: c.env}).list {
		flags["-"+f.name] = f.predict
	}
	return flags
}

// protectExec puts "--" in front of the command line that exec passes on: without it a -h of that command line would be
// taken as a call for help.
func protectExec(env *Env, args []string) []string {
	if len(args) == 0 || args[0] != "exec" {
		return args
	}
	o := execCommand(env).options(&connection{env: env})
	rest, err := o.parse(args[1:], true)
	if errors.Is(err, flag.ErrHelp) || err != nil || len(rest) < 2 {
		return args
	}
	at := len(args) - len(rest) + 1 // behind the id
	if args[at] == "--" || args[at-2] == "--" {
		return args
	}
	out := append([]string{}, args[:at]...)
	return append(append(out, "--"), args[at:]...)
}
