// Package redact masks secrets in texts that are for logs, errors and records.
//
// It owns what a secret looks like. It is a net below those who must not put secrets into a text in the first place.
package redact

import (
	"regexp"
	"strings"
)

// keyPattern matches both spellings of an API key, also where a part of one was cut off or its digits are not hexadecimal
// in full: what is masked too much in a message costs less than a secret in a log.
var keyPattern = regexp.MustCompile(`(sb_[0-9A-Za-z]{1,32}_|e2b_)[0-9A-Fa-f]{8}[0-9A-Za-z]*`)

// others are secrets of others' making, each with a word without which it is not there.
var others = []struct {
	word    string
	pattern *regexp.Regexp
	to      string
}{
	{"eyJ", regexp.MustCompile(`eyJ[0-9A-Za-z_-]{6,}(\.[0-9A-Za-z_-]*){1,2}`), "eyJ…"},                                 // a JWT
	{"hv", regexp.MustCompile(`\b(hv[sbr])\.[0-9A-Za-z_-]{16,}`), "${1}.…"},                                            // a token of Vault
	{"earer", regexp.MustCompile(`([Bb]earer\s+)[0-9A-Za-z._~+/=-]{8,}`), "${1}…"},                                     // a header
	{"://", regexp.MustCompile(`(://[^/@:\s]*:)[^/@\s]+@`), "${1}…@"},                                                  // a password in a URL
	{"PRIVATE KEY", regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END|$)`), "-----PRIVATE KEY …"}, // PEM
}

// tokenPattern matches the tokens of sandboxes, and digests, which are none.
var tokenPattern = regexp.MustCompile(`(sha256:)?\b[0-9a-f]{64}\b`)

// Text returns s with what looks like a secret masked.
func Text(s string) string {
	if len(s) < 12 { // no secret is shorter
		return s
	}
	if strings.Contains(s, "sb_") || strings.Contains(s, "e2b_") {
		s = keyPattern.ReplaceAllString(s, "${1}…")
	}
	for _, o := range others {
		if strings.Contains(s, o.word) {
			s = o.pattern.ReplaceAllString(s, o.to)
		}
	}
	if len(s) >= 64 {
		s = tokenPattern.ReplaceAllStringFunc(s, func(m string) string {
			if strings.HasPrefix(m, "sha256:") {
				return m
			}
			return m[:4] + "…"
		})
	}
	return s
}
