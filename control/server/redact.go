package server

import (
	"regexp"
	"strings"
)

// keyPattern matches both spellings of an API key, also where a part of one was cut off or its digits are not hexadecimal
// in full: what is masked too much in a message costs less than a secret in a log.
var keyPattern = regexp.MustCompile(`(sb_[0-9A-Za-z]{1,32}_|e2b_)[0-9A-Fa-f]{8}[0-9A-Za-z]*`)

// redact masks API keys in a text for a log or an error.
func redact(s string) string {
	if !strings.Contains(s, "sb_") && !strings.Contains(s, "e2b_") {
		return s
	}
	return keyPattern.ReplaceAllString(s, "${1}…")
}
