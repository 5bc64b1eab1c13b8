// Package version says which version of SoulBox this is, which version of the public API it speaks, and what it works
// together with.
//
// It owns those numbers and the rule that compares them. It never talks to anyone. Every package of the project may import
// it, except what runs inside a sandbox.
package version

import (
	"fmt"
	"runtime/debug"

	goversion "github.com/hashicorp/go-version"
)

// Version is the version of the product, a semantic version without "v". The linker sets it in releases:
// -ldflags "-X github.com/soulbox-dev/soulbox/control/api/version.Version=1.2.3".
var Version = "0.1.0-dev"

// API is the version of the public API that this code speaks, and MinAPI the oldest that its service serves. A change that
// breaks a client of the same number is not made: it gets the next one.
const (
	API    = 1
	MinAPI = 1
)

// MinClient is the oldest client that the service serves, and MinNode the oldest node that it uses.
const (
	MinClient = "0.1.0-dev"
	MinNode   = "0.1.0-dev"
)

// maxLen bounds what is parsed, in bytes.
const maxLen = 128

// Compatible returns nil where have, a semantic version, is at least least. what names the thing for the error, which tells
// the version that it needs. A pre-release is older than its release; build metadata does not count.
func Compatible(what, have, least string) error {
	h, err := parse(have)
	if err != nil {
		return fmt.Errorf("version of the %s: %w", what, err)
	}
	l, err := parse(least)
	if err != nil {
		return fmt.Errorf("least version of the %s: %w", what, err)
	}
	if h.LessThan(l) {
		return &IncompatibleError{What: what, Have: have, Need: least}
	}
	return nil
}

// CompatibleAPI returns nil where a peer that speaks API version have can be served. what names the peer.
func CompatibleAPI(what string, have int) error {
	switch {
	case have < MinAPI:
		return &IncompatibleError{What: "API of the " + what, Have: fmt.Sprint(have), Need: fmt.Sprint(MinAPI)}
	case have > API:
		return &IncompatibleError{What: "API of the " + what, Have: fmt.Sprint(have), Need: fmt.Sprint(API), TooNew: true}
	}
	return nil
}

// IncompatibleError says that two parts do not work together and which version would.
type IncompatibleError struct {
	What   string // what has the wrong version
	Have   string
	Need   string // least version, or the newest one where TooNew is set
	TooNew bool
}

func (e *IncompatibleError) Error() string {
	if e.TooNew {
		return fmt.Sprintf("version %s of the %s is too new: this is SoulBox %s, which serves at most %s", e.Have, e.What, Version, e.Need)
	}
	return fmt.Sprintf("version %s of the %s is too old: SoulBox %s needs at least %s", e.Have, e.What, Version, e.Need)
}

// Commit returns the commit that the binary was built from, with "+dirty" for changes that were not committed, or "" where
// the build does not tell.
func Commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var commit, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if commit == "" {
		return ""
	}
	return commit + dirty
}

func parse(s string) (*goversion.Version, error) {
	if len(s) > maxLen {
		return nil, fmt.Errorf("%.20q… is longer than %d bytes", s, maxLen)
	}
	v, err := goversion.NewSemver(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a semantic version", s)
	}
	return v, nil
}
