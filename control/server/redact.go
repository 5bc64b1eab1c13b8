package server

import masking "github.com/soulbox-dev/soulbox/control/redact"

// redact masks secrets in a text for a log or an error.
func redact(s string) string { return masking.Text(s) }
