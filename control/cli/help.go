package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/cli"
)

// common are the commands that most people want first.
var common = []string{"dev", "init", "sandbox", "exec", "cp", "logs", "template"}

// help returns the text for a call without a command that exists.
func help(*Env) cli.HelpFunc {
	return func(all map[string]cli.CommandFactory) string {
		var b strings.Builder
		fmt.Fprintf(&b, "Usage: %s [-version] [-help] [-autocomplete-(un)install] <command> [args]\n\n", Name)
		b.WriteString("Common commands:\n")
		var first, others []string
		for _, name := range common {
			if all[name] != nil {
				first = append(first, name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if !slices.Contains(common, name) {
				others = append(others, name)
			}
		}
		listCommands(&b, all, first)
		if len(others) > 0 {
			b.WriteString("\nOther commands:\n")
			listCommands(&b, all, others)
		}
		return strings.TrimRight(b.String(), "\n")
	}
}

func listCommands(w io.Writer, all map[string]cli.CommandFactory, names []string) {
	t := tabwriter.NewWriter(w, 0, 8, 4, ' ', 0)
	for _, name := range names {
		c, err := all[name]()
		if err != nil {
			continue
		}
		fmt.Fprintf(t, "    %s\t%s\n", name, c.Synopsis())
	}
	_ = t.Flush()
}
