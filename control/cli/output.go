package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ryanuber/columnize"
)

const none = "<none>"

// printJSON writes v for programs.
func printJSON(w io.Writer, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// printTable writes rows, the first of which is the heading, in columns.
func printTable(w io.Writer, rows [][]string) error {
	_, err := fmt.Fprintln(w, columns(rows, "  "))
	return err
}

// printPairs writes names and values below each other.
func printPairs(w io.Writer, pairs [][]string) error {
	_, err := fmt.Fprintln(w, columns(pairs, " = "))
	return err
}

func columns(rows [][]string, glue string) string {
	const delim = "\x1f" // printable leaves none of it in a cell
	lines := make([]string, 0, len(rows))
	for _, r := range rows {
		cells := make([]string, len(r))
		for i, cell := range r {
			if cells[i] = strings.ReplaceAll(printable(cell), "\n", `\n`); cells[i] == "" {
				cells[i] = none
			}
		}
		lines = append(lines, strings.Join(cells, delim))
	}
	c := columnize.DefaultConfig()
	c.Delim, c.Glue, c.Empty = delim, glue, none
	return columnize.Format(lines, c)
}

// printable returns s with everything that a terminal would act upon spelled out: much of what is shown was chosen by
// whoever wrote the code in the sandbox.
func printable(s string) string {
	clean := true
	for _, r := range s {
		if !shown(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if shown(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRune(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}

func shown(r rune) bool { return r == '\n' || r != unicode.ReplacementChar && unicode.IsPrint(r) }

// ago is the time since t for people.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return none
	}
	return span(now.Sub(t)) + " ago"
}

// until is the time to t for people.
func until(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case !t.After(now):
		return "due"
	}
	return "in " + span(t.Sub(now))
}

// span is a duration with its two greatest units.
func span(d time.Duration) string {
	d = max(0, d).Truncate(time.Second)
	days := d / (24 * time.Hour)
	hours, minutes, seconds := d/time.Hour%24, d/time.Minute%60, d/time.Second%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	case minutes > 0:
		return fmt.Sprintf("%dm%ds", minutes, seconds)
	}
	return fmt.Sprintf("%ds", seconds)
}

// short is a duration with three digits.
func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.1f µs", float64(d)/float64(time.Microsecond))
}

// when is a time for people who compare it with others.
func when(t time.Time) string {
	if t.IsZero() {
		return none
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}
