package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
)

// resumeTime is how long a sandbox that is resumed, or a copy, lives where nobody says otherwise.
const resumeTime = 5 * time.Minute

func sandboxPauseCommand(env *Env) *command {
	var filesOnly bool
	return &command{
		synopsis: "Pause sandboxes",
		usage:    "[options] <id>...",
		about: `
Pauses sandboxes. Their processes stand still at once, and are then kept on
disk with their memory and files, so that a paused sandbox costs no memory. A
paused sandbox does not end by itself. With -files-only the processes end, and
a resume boots the sandbox anew from its files.

    $ soulbox sandbox pause <id>
    $ soulbox sandbox resume <id>`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&filesOnly, "files-only", "Keep the files and end the processes.")
		},
		args: sandboxNames(env, false),
		run: onSandboxes(env, "pause", "Paused", func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			return client.PauseSandbox(ctx, id, filesOnly)
		}),
	}
}

func sandboxResumeCommand(env *Env) *command {
	timeout := resumeTime
	var filesOnly bool
	return &command{
		synopsis: "Resume paused sandboxes",
		usage:    "[options] <id>...",
		about: `
Lets paused sandboxes go on where they were: the same processes with the same
memory, files and terminals.`,
		remote: true,
		flags: func(o *options) {
			o.Duration(&timeout, "timeout", "<duration>", "How long they live from now on.")
			o.Switch(&filesOnly, "files-only", "Boot them anew from their files, and give up processes and memory.")
		},
		args: sandboxNames(env, false),
		run: onSandboxes(env, "resume", "Resumed", func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			_, err := client.ResumeSandbox(ctx, id, timeout, filesOnly)
			return err
		}),
	}
}

func sandboxForkCommand(env *Env) *command {
	timeout := resumeTime
	count := int64(1)
	var asJSON, quiet bool
	return &command{
		synopsis: "Make running copies of a sandbox",
		usage:    "[options] <id>",
		about: `
Makes copies of a running or paused sandbox, with its processes, memory and
files as they are at this moment. The sandbox goes on. Each copy has an id, a
machine id and tokens of its own.

    $ soulbox sandbox fork -count=10 <id>`,
		remote: true,
		flags: func(o *options) {
			o.Int(&count, "count", "<n>", "How many copies, at most 100.", 1)
			o.Duration(&timeout, "timeout", "<duration>", "How long each lives.")
			o.Switch(&quiet, "quiet", "Print the ids only.")
			o.alias("q", &quiet)
			o.Switch(&asJSON, "json", "Print the copies as JSON.")
		},
		args: sandboxNames(env, false),
		run: onSandbox(func(ctx context.Context, client *api.Client, id api.SandboxID) error {
			start := time.Now()
			forks, err := client.ForkSandbox(ctx, id, int(count), timeout)
			if err != nil {
				return fmt.Errorf("fork sandbox %s: %w", id, err)
			}
			if asJSON {
				return printJSON(env.Stdout, forks)
			}
			return printForks(env, forks, quiet, time.Since(start))
		}),
	}
}

// printForks names the copies; those that could not be made are the error.
func printForks(env *Env, forks []api.ForkResult, quiet bool, took time.Duration) error {
	var failed []error
	made := 0
	for i, f := range forks {
		if f.Sandbox == nil {
			err := errors.New("no sandbox and no reason")
			if f.Error != nil {
				err = f.Error
			}
			failed = append(failed, fmt.Errorf("copy %d: %w", i+1, err))
			continue
		}
		made++
		fmt.Fprintln(env.Stdout, f.Sandbox.SandboxID)
	}
	if !quiet {
		fmt.Fprintf(env.Stderr, "%d of %d copies in %s\n", made, len(forks), short(took))
	}
	return errors.Join(failed...)
}
