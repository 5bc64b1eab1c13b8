package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Error is a list or an entry that is no good.
type Error struct {
	Field string
	Entry string // the entry, where it is one that is no good
	Text  string // what is wrong with it
}

func (e *Error) Error() string {
	if e.Entry == "" {
		return e.Field + ": " + e.Text
	}
	return fmt.Sprintf("%s: entry %.80q: %s", e.Field, e.Entry, e.Text)
}

func tooMany(n int) string { return fmt.Sprintf("%d entries, at most %d", n, MaxEntries) }

// Texts that E2B's clients know.
const (
	textDomainsNeedDeny = "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic."
	textNoPorts         = "invalid %s out entry %q: port-specific rules are not supported for egress"
	textDeniedCIDR      = "invalid denied CIDR %s"
	textAllowed         = "invalid allowed entry %s: neither an IP address, nor a CIDR, nor a domain"
)

// CheckE2B checks the lists of E2B's contract, which are narrower than ours: no protocols, no ports, no names in the deny
// list, and names in the allow list only with everything else denied. The error's text is the one that E2B answers with.
func CheckE2B(allowOut, denyOut []string) error {
	if len(allowOut) > MaxEntries {
		return fmt.Errorf("network.allowOut: %s", tooMany(len(allowOut)))
	}
	if len(denyOut) > MaxEntries {
		return fmt.Errorf("network.denyOut: %s", tooMany(len(denyOut)))
	}
	for _, s := range denyOut {
		e, err := ParseEntry(s)
		switch {
		case err != nil || e.Name != "":
			return fmt.Errorf(textDeniedCIDR, clip(s))
		case !plain(s):
			return fmt.Errorf(textNoPorts, "deny", clip(s))
		}
	}
	names := false
	for _, s := range allowOut {
		e, err := ParseEntry(s)
		switch {
		case err != nil:
			return fmt.Errorf(textAllowed, clip(s))
		case !plain(s) && (e.Name == "" || strings.Contains(s, ":")):
			return fmt.Errorf(textNoPorts, "allow", clip(s))
		}
		names = names || e.Name != ""
	}
	if names && !slices.ContainsFunc(denyOut, func(s string) bool { e, err := ParseEntry(s); return err == nil && e.everything() }) {
		return fmt.Errorf("%s", textDomainsNeedDeny)
	}
	return nil
}

// plain reports whether s is an address or a CIDR and nothing else.
func plain(s string) bool {
	_, err := ParsePrefix(s)
	return err == nil
}

func clip(s string) string { return s[:min(len(s), 80)] }
