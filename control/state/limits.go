package state

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of what a record may hold. They keep every command far below MaxCommandBytes.
const (
	MaxCommandBytes    = 512 << 10 // of one encoded command
	MaxTemplateName    = 256       // bytes
	MaxTemplateCommand = 64 << 10  // bytes of a start or a ready command
	MaxReason          = 4 << 10   // bytes; longer reasons are cut
	MaxKeyName         = 128       // bytes
	MaxMetadataPairs   = 256
	MaxMetadataBytes   = 64 << 10 // of all keys and values together
	MaxEnvPairs        = 1024
	MaxEnvBytes        = 128 << 10 // of all names and values together
	MaxNetworkBytes    = 64 << 10
	MaxBatch           = 1000 // records that one command ends or purges
	MaxBuilds          = 1000 // that are remembered
	MaxTenantBuilds    = 100  // of one tenant that have ended and are remembered
)

// LimitError tells which field breaks which limit.
type LimitError struct {
	Field   string
	Problem string
}

func (e *LimitError) Error() string { return e.Field + " " + e.Problem }

func limitErrorf(field, format string, args ...any) error {
	return &LimitError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// CheckMetadata checks the pairs that a client attaches to a sandbox.
func CheckMetadata(m map[string]string) error {
	return checkPairs("metadata", m, MaxMetadataPairs, MaxMetadataBytes, func(k string) string {
		if k == "" {
			return "has an empty key"
		}
		return ""
	})
}

// CheckEnv checks the environment of a sandbox.
func CheckEnv(m map[string]string) error {
	return checkPairs("envVars", m, MaxEnvPairs, MaxEnvBytes, func(k string) string {
		if k == "" || strings.ContainsRune(k, '=') {
			return fmt.Sprintf("has the name %.40q: a name is not empty and has no \"=\"", k)
		}
		return ""
	})
}

// CheckNetwork checks a network configuration as far as it is kept here.
func CheckNetwork(raw []byte) error {
	if len(raw) > MaxNetworkBytes {
		return limitErrorf("network", "is %d bytes, at most %d are kept", len(raw), MaxNetworkBytes)
	}
	if len(raw) > 0 && !json.Valid(raw) {
		return limitErrorf("network", "is not JSON")
	}
	return nil
}

func checkPairs(field string, m map[string]string, pairs, bytes int, badKey func(string) string) error {
	if len(m) > pairs {
		return limitErrorf(field, "has %d entries, at most %d are allowed", len(m), pairs)
	}
	n := 0
	for k, v := range m {
		if p := badKey(k); p != "" {
			return limitErrorf(field, "%s", p)
		}
		if !clean(k) || !clean(v) {
			return limitErrorf(field, "entry %.40q is not UTF-8 without NUL bytes", k)
		}
		n += len(k) + len(v)
	}
	if n > bytes {
		return limitErrorf(field, "is %d bytes, at most %d are allowed", n, bytes)
	}
	return nil
}

func clean(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// cut shortens a reason to MaxReason bytes at a rune's border.
func cut(s string) string {
	if len(s) <= MaxReason {
		return s
	}
	s = s[:MaxReason]
	for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) {
		s = s[:len(s)-1]
	}
	return s
}
