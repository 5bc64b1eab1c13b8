// Package tree reads a root file system tree: it lists it in one canonical order, takes its digest and packs it as a
// deterministic tar.
//
// It owns the canonical listing, the policy on extended attributes, and the record in which a template's defaults travel
// with its tar. It never writes into a tree (package unpack does) and keeps no state (package store does). It knows nothing
// of sandboxes or nodes.
package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
)

// ErrInvalid is in the chain of every error that a malformed tree or malformed defaults cause.
var ErrInvalid = errors.New("invalid template")

// DefaultsRecord is the key of the PAX global record that carries Defaults as JSON in a tar that Pack wrote.
const DefaultsRecord = "SOULBOX.defaults"

// Limits of Defaults.
const (
	MaxEnv      = 512       // variables
	MaxEnvBytes = 128 << 10 // bytes of all variables
	maxUser     = 256
	maxCwd      = 4095
)

// Defaults is what a template says about the processes that are started from it. It is part of the template's digest.
type Defaults struct {
	User string   `json:"user,omitempty"` // name, uid, or either with ":group"; empty is root
	Cwd  string   `json:"cwd,omitempty"`  // absolute; empty is the user's home
	Env  []string `json:"env,omitempty"`  // KEY=value
}

// Validate checks d. Its errors name the field and, where one is exceeded, the limit.
func (d Defaults) Validate() error {
	switch {
	case len(d.User) > maxUser:
		return fmt.Errorf("%w: default user is longer than %d bytes", ErrInvalid, maxUser)
	case strings.ContainsAny(d.User, "\x00\n\r\t /"):
		return fmt.Errorf("%w: default user %.64q has a character that no user name has", ErrInvalid, d.User)
	case len(d.Cwd) > maxCwd:
		return fmt.Errorf("%w: default working directory is longer than %d bytes", ErrInvalid, maxCwd)
	case strings.ContainsRune(d.Cwd, 0):
		return fmt.Errorf("%w: default working directory has a NUL byte", ErrInvalid)
	case d.Cwd != "" && !path.IsAbs(d.Cwd):
		return fmt.Errorf("%w: default working directory %.64q is not absolute", ErrInvalid, d.Cwd)
	case len(d.Env) > MaxEnv:
		return fmt.Errorf("%w: default environment has more than %d variables", ErrInvalid, MaxEnv)
	}
	total := 0
	for _, kv := range d.Env {
		total += len(kv)
		if i := strings.IndexByte(kv, '='); i < 1 || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("%w: default environment variable %.64q is not KEY=value", ErrInvalid, kv)
		}
	}
	if total > MaxEnvBytes {
		return fmt.Errorf("%w: default environment is larger than %d bytes", ErrInvalid, MaxEnvBytes)
	}
	return nil
}

// ParseDefaults reads the JSON of a DefaultsRecord and validates it.
func ParseDefaults(s string) (Defaults, error) {
	var d Defaults
	dec := json.NewDecoder(strings.NewReader(s))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return Defaults{}, fmt.Errorf("%w: record %s: %w", ErrInvalid, DefaultsRecord, err)
	}
	return d, d.Validate()
}

// XattrRule says what becomes of an extended attribute.
type XattrRule int

// The rules.
const (
	XattrKeep   XattrRule = iota // part of the template
	XattrDrop                    // means something only on the machine it came from
	XattrRefuse                  // would change what the kernel makes of the tree
)

// Xattr returns the rule for an attribute's name.
//
// security.capability is kept, as setuid bits are: a template is an operator's, and what either gives is bounded by the
// sandbox's user namespace and bounding set. trusted.* and user.overlay.* steer overlayfs (redirects, opaque directories,
// metacopy) and are refused. Labels and measurements of security modules and POSIX ACLs name objects and ids of another
// machine and are dropped.
func Xattr(name string) XattrRule {
	switch {
	case name == CapabilityXattr:
		return XattrKeep
	case strings.HasPrefix(name, "trusted."), strings.HasPrefix(name, "user.overlay."):
		return XattrRefuse
	case strings.HasPrefix(name, "user."):
		return XattrKeep
	default:
		return XattrDrop
	}
}

// CapabilityXattr holds a file's capabilities.
const CapabilityXattr = "security.capability"

// XattrRecord is the prefix of a PAX record that holds an extended attribute.
const XattrRecord = "SCHILY.xattr."
