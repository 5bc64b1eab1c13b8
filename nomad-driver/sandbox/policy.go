package sandbox

import "github.com/soulbox-dev/soulbox/nomad-driver/guest"

// Policy returns what PID 1 of a sandbox of a profile is told to set up, with the default limits: the capabilities, the
// seccomp program, the masked and read-only paths and the resource limits as they are enforced. For audits.
func Policy(profile string) (guest.Boot, error) {
	return bootMessage(Config{
		Boot:   guest.Boot{Profile: profile, Hostname: DefaultHostname},
		Limits: Limits{TmpBytes: DefaultTmpBytes, NoFile: DefaultNoFile},
	})
}
