package driver

import "strings"

// nodeEnv keeps of the plugin's environment what a daemon needs. Nomad hands its plugins the agent's whole environment,
// with tokens and the go-plugin handshake in it.
func nodeEnv(environ []string) []string {
	var kept []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "LANG", "TMPDIR", "TZ", "GOMEMLIMIT", "GOGC", "GOMAXPROCS":
			kept = append(kept, kv)
		}
	}
	return kept
}
