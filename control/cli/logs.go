package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
)

// logView is what one call of logs shows.
type logView struct {
	follow, raw, stderr, asJSON bool
	tail                        int64 // -1: all
	filter                      api.LogFilter
}

var (
	logLevels  = []string{"debug", "info", "warn", "error"}
	logSources = []string{"stdout", "stderr", "pty", "platform"}
)

func logsCommand(env *Env) *command {
	v := logView{tail: -1}
	return &command{
		synopsis: "Show what happened in a sandbox",
		usage:    "[options] <id>",
		about: `
Shows a sandbox's log: what its processes have written, and what the platform
did with it, in order of time. The newest part of it is kept, and for a day
after the sandbox's end.

    $ soulbox logs -f -tail=20 <id>
    $ soulbox logs -level=warn -since=10m <id>
    $ soulbox logs -source=stderr -search=Traceback <id>

With -raw it shows the bytes that the sandbox's own command has written, and
nothing else: the newest 256 KiB, while the sandbox exists.

    $ soulbox sandbox create -template=base -- python3 -m http.server
    $ soulbox logs -raw -stderr -f <id>`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&v.follow, "f", "Stay, and show what comes, until the sandbox ends.")
			o.alias("follow", &v.follow)
			o.Int(&v.tail, "tail", "<lines>", "Start with the last so many lines.", 0)
			word(o, &v.filter.Level, "level", logLevels, "Only lines of this weight and more: debug, info, warn or error.")
			word(o, &v.filter.Source, "source", logSources, "Only lines from there: stdout, stderr, pty or platform.")
			o.String(&v.filter.Search, "search", "<text>", "Only lines with this text.", nil)
			moment(o, &v.filter.After, "since", "Only lines after this time, or from so long ago: 2006-01-02T15:04:05Z or 10m.")
			moment(o, &v.filter.Before, "until", "Only lines before this time, or so long ago. Not with -f.")
			o.Switch(&v.asJSON, "json", "Print one JSON object a line.")
			o.Switch(&v.raw, "raw", "Show the output of the sandbox's own command, as it is.")
			o.Switch(&v.stderr, "stderr", "With -raw: standard error instead of standard output.")
		},
		args: sandboxNames(env, true),
		run: func(ctx context.Context, conn *connection, args []string) error {
			ids, err := sandboxIDs(args, 1, 1)
			if err == nil {
				err = v.check()
			}
			if err != nil {
				return err
			}
			client, err := conn.client()
			if err != nil {
				return err
			}
			show := v.show
			if v.raw {
				show = v.showRaw
			}
			if err := show(ctx, env.Stdout, client, ids[0]); err != nil {
				return fmt.Errorf("logs of sandbox %s: %w", ids[0], err)
			}
			return nil
		},
	}
}

// word declares a flag that takes one of a few words.
func word(o *options, p *string, name string, words []string, help string) {
	o.Func(name, "<"+name+">", help, complete.PredictSet(words...), func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("%.40q is none of %s", s, strings.Join(words, ", "))
		}
		*p = s
		return nil
	})
}

// moment declares a flag that takes a time, or how long ago it was.
func moment(o *options, p *time.Time, name, help string) {
	o.Func(name, "<time>", help, nil, func(s string) error {
		if d, err := time.ParseDuration(s); err == nil && d >= 0 {
			*p = time.Now().Add(-d)
			return nil
		}
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return fmt.Errorf("%.40q is neither a time as 2006-01-02T15:04:05Z nor a duration as 10m", s)
		}
		*p = t
		return nil
	})
}

func (v *logView) check() error {
	filtered := v.filter != api.LogFilter{}
	switch {
	case v.stderr && !v.raw:
		return usagef("-stderr goes with -raw; -source=stderr shows the lines of the log that went there")
	case v.raw && (filtered || v.asJSON):
		return usagef("-raw shows bytes: it goes with -f, -tail and -stderr only")
	case v.follow && !v.filter.Before.IsZero():
		return usagef("-f and -until do not go together")
	}
	return nil
}

// show writes the log. The history comes in pages, of an ended sandbox too; what follows begins behind its last entry.
func (v *logView) show(ctx context.Context, w io.Writer, client *api.Client, id api.SandboxID) error {
	last, err := v.history(ctx, w, client, id)
	if err != nil || !v.follow {
		return err
	}
	f := v.filter
	if !last.IsZero() {
		f.After = last
	}
	err = client.FollowLog(ctx, id, f, func(e api.LogEntry) error { return v.print(w, e) })
	var e *api.Error
	if errors.As(err, &e) && e.ErrorCode == api.CodeNotRunning {
		return nil // it has ended, and all that it left is shown
	}
	return err
}

// history writes what there is and returns the time of the last entry.
func (v *logView) history(ctx context.Context, w io.Writer, client *api.Client, id api.SandboxID) (last time.Time, err error) {
	f := v.filter
	if v.tail == 0 { // nothing is shown, but what is followed begins behind it
		f.Backward, f.Limit = true, 1
		page, err := client.Log(ctx, id, f)
		if len(page) > 0 {
			last = page[0].Time
		}
		return last, err
	}
	var newest []api.LogEntry // with -tail, the newest first
	for left := v.tail; left != 0; {
		f.Limit = api.MaxLogEntries
		if v.tail >= 0 {
			f.Backward, f.Limit = true, int(min(left, api.MaxLogEntries))
		}
		page, err := client.Log(ctx, id, f)
		if err != nil {
			return last, err
		}
		if v.tail >= 0 {
			newest = append(newest, page...)
			left -= int64(len(page))
		}
		for _, e := range page {
			if f.Backward {
				f.Before = e.Time
				continue
			}
			f.After, last = e.Time, e.Time
			if err := v.print(w, e); err != nil {
				return last, err
			}
		}
		if len(page) < f.Limit {
			break
		}
	}
	for _, e := range slices.Backward(newest) {
		last = e.Time
		if err := v.print(w, e); err != nil {
			return last, err
		}
	}
	return last, nil
}

func (v *logView) print(w io.Writer, e api.LogEntry) error {
	if v.asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	var fields strings.Builder
	for _, k := range slices.Sorted(maps.Keys(e.Fields)) {
		fmt.Fprintf(&fields, " %s=%s", k, e.Fields[k])
	}
	line := fmt.Sprintf("%s %-5s %s:%s %s", e.Time.UTC().Format("2006-01-02T15:04:05.000Z"), strings.ToUpper(e.Level), e.Source, fields.String(), e.Message)
	_, err := fmt.Fprintln(w, strings.ReplaceAll(printable(line), "\n", `\n`))
	return err
}
