package store

import (
	"fmt"
	"regexp"
)

// MaxName is the longest template name, in bytes.
const MaxName = 128

var (
	namePattern   = regexp.MustCompile(`^([a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*(:[a-z0-9._-]+)?$`)
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// IsDigest reports whether s is spelled as a template's digest.
func IsDigest(s string) bool { return digestPattern.MatchString(s) }

// CheckName checks a template's name: [namespace/]name[:tag], each of [a-z0-9._-].
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: template name is empty", ErrInvalid)
	case len(name) > MaxName:
		return fmt.Errorf("%w: template name is longer than %d bytes", ErrInvalid, MaxName)
	case IsDigest(name):
		return fmt.Errorf("%w: template name %q is a digest", ErrInvalid, name)
	case !namePattern.MatchString(name):
		return fmt.Errorf("%w: template name %.140q is not [namespace/]name[:tag] of a-z, 0-9, \".\", \"_\" and \"-\"", ErrInvalid, name)
	}
	return nil
}
