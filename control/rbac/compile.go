package rbac

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/state"
)

// rule is a rule as the evaluator asks it: every word and pattern is parsed.
type rule struct {
	deny    bool
	ids     []pattern
	names   []pattern
	labels  []labelPattern
	paths   []pathPattern
	sources []netip.Prefix
	after   time.Time
	before  time.Time
	hours   *hours
	days    uint8 // bit 0 is Sunday; 0: all
	owner   bool

	ofObject bool // it looks at the object
	plain    bool // it looks at nothing: it always holds

	role  string // whose it is, for explanations
	index int
}

type labelPattern struct {
	key   string
	value pattern
}

type hours struct{ from, to int } // minutes of a day; from > to: over midnight

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// Check returns an error that names the field where a rule says what nobody can follow.
func Check(r state.Rule) error {
	_, _, err := compile(r, "", 0)
	return err
}

// compile parses a rule. where are the permissions that it speaks of.
func compile(r state.Rule, role string, index int) (out *rule, where []Permission, err error) {
	out = &rule{deny: r.Deny, after: r.NotBefore, before: r.NotAfter, owner: r.Owner, role: role, index: index}
	resources, err := words("resources", r.Resources, Resources, Resource.Valid)
	if err != nil {
		return nil, nil, err
	}
	actions, err := words("actions", r.Actions, Actions, Action.Valid)
	if err != nil {
		return nil, nil, err
	}
	for _, res := range resources {
		if len(r.Paths) > 0 && res != File {
			continue // only files have paths
		}
		for _, a := range actions {
			where = append(where, Permission{res, a})
		}
	}
	if len(where) == 0 {
		return nil, nil, errors.New("paths: go with the resource file only")
	}
	out.ids, out.names = patterns(r.IDs), patterns(r.Names)
	for _, p := range r.Paths {
		if !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "**") {
			return nil, nil, fmt.Errorf("paths: %.80q neither begins with \"/\" nor with \"**\"", p)
		}
		if clean := path.Clean(p); clean != p {
			return nil, nil, fmt.Errorf("paths: %.80q would be written %.80q", p, clean)
		}
		out.paths = append(out.paths, patterns(strings.Split(p, "/")))
	}
	for _, k := range slices.Sorted(keys(r.Labels)) {
		out.labels = append(out.labels, labelPattern{k, pattern{r.Labels[k]}})
	}
	for _, s := range r.Sources {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr, addrErr := netip.ParseAddr(s)
			if addrErr != nil {
				return nil, nil, fmt.Errorf("sources: %.80q is no address and no prefix such as 10.0.0.0/8", s)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		out.sources = append(out.sources, netip.PrefixFrom(p.Addr().Unmap(), p.Bits()).Masked())
	}
	if !r.NotBefore.IsZero() && !r.NotAfter.IsZero() && !r.NotBefore.Before(r.NotAfter) {
		return nil, nil, fmt.Errorf("not_after: lies not after not_before")
	}
	if r.Hours != "" {
		if out.hours, err = parseHours(r.Hours); err != nil {
			return nil, nil, err
		}
	}
	for _, d := range r.Days {
		i := slices.Index(weekdays, d)
		if i < 0 {
			return nil, nil, fmt.Errorf("days: %.20q is none of mon, tue, wed, thu, fri, sat, sun", d)
		}
		out.days |= 1 << i
	}
	out.ofObject = len(out.ids)+len(out.names)+len(out.labels)+len(out.paths) > 0 || out.owner
	out.plain = !out.ofObject && len(out.sources) == 0 && out.after.IsZero() && out.before.IsZero() && out.hours == nil && out.days == 0
	return out, where, nil
}

func keys(m map[string]string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// words expands "*" and refuses words that are not known.
func words[T ~string](field string, list []string, all []T, valid func(T) bool) ([]T, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: is missing; \"*\" stands for all", field)
	}
	var out []T
	for _, w := range list {
		switch {
		case w == "*":
			return all, nil
		case !valid(T(w)):
			return nil, fmt.Errorf("%s: %.40q is none of %v", field, w, all)
		}
		out = append(out, T(w))
	}
	return out, nil
}

func parseHours(s string) (*hours, error) {
	from, to, ok := strings.Cut(s, "-")
	a, errA := minute(from)
	b, errB := minute(to)
	if !ok || errA != nil || errB != nil || a == b {
		return nil, fmt.Errorf("hours: %.40q is not such as \"08:00-18:00\"", s)
	}
	return &hours{a, b}, nil
}

func minute(s string) (int, error) {
	h, m, ok := strings.Cut(s, ":")
	hour, errH := strconv.Atoi(h)
	mins, errM := strconv.Atoi(m)
	if !ok || len(h) != 2 || len(m) != 2 || errH != nil || errM != nil || hour < 0 || mins < 0 || mins > 59 || hour*60+mins > 24*60 {
		return 0, fmt.Errorf("%.10q is no time", s)
	}
	return hour*60 + mins, nil
}

func (h *hours) holds(t time.Time) bool {
	m := t.Hour()*60 + t.Minute()
	if h.from < h.to {
		return m >= h.from && m < h.to
	}
	return m >= h.from || m < h.to
}

// pattern has "*" for any characters.
type pattern struct{ text string }

func patterns(list []string) []pattern {
	var out []pattern
	for _, p := range list {
		out = append(out, pattern{p})
	}
	return out
}

// match tells whether p covers all of s. It goes back to the last star only: the time is at most the product of the lengths.
func (p pattern) match(s string) bool {
	text, pi, si := p.text, 0, 0
	starP, starS := -1, 0 // behind the last star, and where what it stands for ends
	for si < len(s) {
		switch {
		case pi < len(text) && text[pi] == '*':
			pi++
			starP, starS = pi, si
		case pi < len(text) && text[pi] == s[si]:
			pi, si = pi+1, si+1
		case starP >= 0:
			starS++
			pi, si = starP, starS
		default:
			return false
		}
	}
	return strings.Trim(text[pi:], "*") == ""
}

func anyMatch(list []pattern, s string) bool {
	if len(list) == 0 {
		return true
	}
	for _, p := range list {
		if p.match(s) {
			return true
		}
	}
	return false
}

// pathPattern is the elements of a path; the element "**" stands for any number of them, none too, and "*" stays within one.
type pathPattern []pattern

func (p pathPattern) match(elements []string) bool {
	pi, si := 0, 0
	starP, starS := -1, 0
	for si < len(elements) {
		switch {
		case pi < len(p) && p[pi].text == "**":
			pi++
			starP, starS = pi, si
		case pi < len(p) && p[pi].match(elements[si]):
			pi, si = pi+1, si+1
		case starP >= 0:
			starS++
			pi, si = starP, starS
		default:
			return false
		}
	}
	for ; pi < len(p); pi++ {
		if p[pi].text != "**" {
			return false
		}
	}
	return true
}

// all tells whether p covers the path and everything below it.
func (p pathPattern) all(elements []string) bool {
	return len(p) > 0 && p[len(p)-1].text == "**" && p.match(elements)
}

// some tells whether p may cover anything below the path.
func (p pathPattern) some(elements []string) bool {
	for i, e := range elements {
		if i == len(p) {
			return false
		}
		if p[i].text == "**" {
			return true
		}
		if !p[i].match(e) {
			return false
		}
	}
	return true
}

// anyPath tells whether one of the patterns concerns a path: what denies, by any part of what is meant; what allows, by all.
func anyPath(list []pathPattern, elements []string, deny, below bool) bool {
	for _, p := range list {
		if p.match(elements) && (!below || deny || p.all(elements)) || below && deny && p.some(elements) {
			return true
		}
	}
	return false
}
