package cli

import (
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/posener/complete"
)

// options are the flags of one command.
type options struct {
	set  *flag.FlagSet
	list []option
	own  int // index of the first one that is not general
}

type option struct {
	name    string
	arg     string // "<id>"; empty for a switch
	help    string
	predict complete.Predictor
}

func newOptions(name string) *options {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	return &options{set: set}
}

func (o *options) add(v flag.Value, name, arg, help string, predict complete.Predictor) {
	if predict == nil {
		predict = complete.PredictAnything
	}
	o.set.Var(v, name, help)
	o.list = append(o.list, option{name, arg, help, predict})
}

// Switch declares a flag without a value.
func (o *options) Switch(p *bool, name, help string) {
	o.set.BoolVar(p, name, false, help)
	o.list = append(o.list, option{name, "", help, complete.PredictNothing})
}

// alias declares further names, not shown, of a switch that sets all of p.
func (o *options) alias(name string, p ...*bool) {
	o.set.BoolFunc(name, "", func(s string) error {
		v, err := strconv.ParseBool(s)
		for _, b := range p {
			*b = v
		}
		return err
	})
}

// String declares a flag with a text.
func (o *options) String(p *string, name, arg, help string, predict complete.Predictor) {
	o.add((*textValue)(p), name, arg, help, predict)
}

// Int declares a flag with a number of at least least.
func (o *options) Int(p *int64, name, arg, help string, least int64) {
	o.add(funcValue(func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return fmt.Errorf("%.40q is not a whole number", s)
		}
		if n < least {
			return fmt.Errorf("%d is less than %d", n, least)
		}
		*p = n
		return nil
	}), name, arg, help, nil)
}

// Duration declares a flag with a time that is greater than zero.
func (o *options) Duration(p *time.Duration, name, arg, help string) {
	o.add(funcValue(func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%.40q is not a duration such as 90s, 10m or 2h", s)
		}
		if d <= 0 {
			return fmt.Errorf("%s is not greater than zero", s)
		}
		*p = d
		return nil
	}), name, arg, help, nil)
}

// Func declares a flag whose value set takes.
func (o *options) Func(name, arg, help string, predict complete.Predictor, set func(string) error) {
	o.add(funcValue(set), name, arg, help, predict)
}

// Pairs declares a flag KEY=VALUE that may be given many times.
func (o *options) Pairs(p *map[string]string, name, help string, lookup func(string) (string, bool)) {
	o.Func(name, "<key=value>", help, nil, func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok && lookup != nil {
			if v, ok = lookup(k); !ok {
				return fmt.Errorf("%.60q has no value here: write %.60s=value", k, k)
			}
		}
		if !ok || k == "" {
			return fmt.Errorf("%.60q is not KEY=VALUE", s)
		}
		if *p == nil {
			*p = map[string]string{}
		}
		(*p)[k] = v
		return nil
	})
}

type textValue string

func (v *textValue) String() string     { return string(*v) }
func (v *textValue) Set(s string) error { *v = textValue(s); return nil }

type funcValue func(string) error

func (funcValue) String() string       { return "" }
func (v funcValue) Set(s string) error { return v(s) }

// parse reads the flags among args and returns the arguments. Flags may also follow arguments, up to "--", unless literal is
// set: then the first argument ends them, and what follows it, a leading "--" included, is not looked at.
func (o *options) parse(args []string, literal bool) ([]string, error) {
	var out []string
	for {
		if err := o.set.Parse(args); err != nil {
			return nil, usageError{err}
		}
		rest := o.set.Args()
		if literal || len(rest) == 0 {
			return append(out, rest...), nil
		}
		if used := len(args) - len(rest); used > 0 && args[used-1] == "--" {
			return append(out, rest...), nil
		}
		out = append(out, rest[0])
		args = rest[1:]
	}
}

const helpWidth = 72

// help writes the texts of list under a title.
func (o *options) help(w io.Writer, title string, list []option) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	for _, f := range list {
		fmt.Fprintf(w, "\n  -%s", f.name)
		if f.arg != "" {
			fmt.Fprintf(w, "=%s", f.arg)
		}
		fmt.Fprintf(w, "\n%s", wrap(f.help, "    ", helpWidth))
	}
}

func wrap(text, indent string, width int) string {
	var b strings.Builder
	n := 0
	for _, word := range strings.Fields(text) {
		switch {
		case n == 0:
			b.WriteString(indent)
		case n+1+len(word) > width:
			b.WriteString("\n" + indent)
			n = 0
		default:
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += len(word)
	}
	return b.String() + "\n"
}
