package posture

import (
	"fmt"
	"io"
	"strings"
)

// WriteText writes the report for people.
func (r Report) WriteText(w io.Writer) error {
	var b strings.Builder
	kernel := r.Kernel
	if r.Upstream != "" && r.Upstream != r.Kernel {
		kernel += " (upstream " + r.Upstream + ")"
	}
	fmt.Fprintf(&b, "SoulBox %s on %s, Linux %s\n", r.Version, r.Host, kernel)
	for _, p := range r.Profiles {
		p.text(&b)
	}
	findings(&b, "Weaknesses of the kernel", r.Kernels)
	findings(&b, "Settings of the host", r.Settings)
	if open := r.Open(); len(open) > 0 {
		fmt.Fprintf(&b, "\n%d open: ", len(open))
		for i, f := range open {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(f.ID)
		}
		b.WriteString("\n")
	} else {
		b.WriteString("\nNothing is open.\n")
	}
	b.WriteString("Sandboxes share the host's kernel: faults of it that nobody knows yet, and side channels, are not defended. See SECURITY.md.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (p Profile) text(b *strings.Builder) {
	fmt.Fprintf(b, "\nProfile %s: %s\n", p.Name, p.About)
	items := func(title string, list []Item) {
		fmt.Fprintf(b, "\n  %s\n", title)
		for _, i := range list {
			fmt.Fprintf(b, "    %-18s %s\n", i.Name, i.Why)
		}
	}
	items("Namespaces", p.Namespaces)
	items("Capabilities, in its own user namespace", p.Capabilities)
	fmt.Fprintf(b, "\n  System calls (every other: %s; %s)\n", p.Unknown, p.Foreign)
	for _, c := range p.Calls {
		fmt.Fprintf(b, "    %-12s %s: %s\n", c.Answer, c.Group, c.Why)
		for _, line := range wrap(strings.Join(c.Names, " "), 96) {
			fmt.Fprintf(b, "                 %s\n", line)
		}
	}
	b.WriteString("\n  Mounts\n")
	for _, m := range p.Mounts {
		fmt.Fprintf(b, "    %-12s %-8s %-22s %s\n", m.Path, m.Type, m.Flags, m.Why)
	}
	items("Landlock, behind the other walls", p.Landlock)
	fmt.Fprintf(b, "\n  Masked      %s\n", orNone(p.Masked))
	fmt.Fprintf(b, "  Read-only   %s\n", orNone(p.ReadOnly))
	fmt.Fprintf(b, "  Devices     %s\n", strings.Join(p.Devices, " "))
	b.WriteString("  Limits     ")
	for _, l := range p.Limits {
		fmt.Fprintf(b, " %s=%s", l.Name, l.Why)
	}
	b.WriteString("\n")
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "nothing: this /proc has none of it"
	}
	return strings.Join(list, " ")
}

func findings(b *strings.Builder, title string, list []Finding) {
	fmt.Fprintf(b, "\n%s\n", title)
	for _, f := range list {
		fmt.Fprintf(b, "  %-9s  %-32s %s\n", f.State, f.ID, f.Title)
		for _, line := range wrap(f.Detail, 96) {
			fmt.Fprintf(b, "             %s\n", line)
		}
		if f.Advice != "" {
			fmt.Fprintf(b, "             → %s\n", f.Advice)
		}
	}
}

// wrap breaks a text between words.
func wrap(s string, width int) []string {
	var out []string
	line := ""
	for _, w := range strings.Fields(s) {
		if line != "" && len(line)+1+len(w) > width {
			out = append(out, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(out, line)
}
