// Package posture says how well this machine holds hostile code: what each profile lets a sandbox do and why, and which
// weaknesses the kernel and the host's settings have, each with what stands in front of it.
//
// It owns the report. It reads, and changes nothing; it asks no daemon: what it says of the profiles comes from the bytes that
// this release loads into a sandbox's PID 1, so that it answers before a node runs, and also why one should not.
package posture

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/boot"
)

// State of a Finding.
type State string

// The states. Only Open fails a strict audit.
const (
	Closed    State = "closed"    // the weakness is not there
	Mitigated State = "mitigated" // it is there, or may be, and a sandbox cannot reach it
	Open      State = "open"      // it is there, or may be, and nothing is known to stand in front of it
)

// Finding is one weakness that was looked for.
type Finding struct {
	ID     string `json:"id"` // a CVE, or the name of a setting
	Title  string `json:"title"`
	State  State  `json:"state"`
	Detail string `json:"detail"`           // what was found, and what stands in front of it
	Advice string `json:"advice,omitempty"` // what the owner of the machine can do
}

// Report is all of it.
type Report struct {
	Version  string    `json:"version"` // of SoulBox
	Time     time.Time `json:"time"`
	Host     string    `json:"host"`
	Kernel   string    `json:"kernel"`   // release
	Upstream string    `json:"upstream"` // the upstream version that it is made from, empty where that cannot be told
	Profiles []Profile `json:"profiles"`
	Kernels  []Finding `json:"kernel_findings"`
	Settings []Finding `json:"host_findings"`
}

// Options say what to look at. The zero value is this machine.
type Options struct {
	Version     string // of SoulBox
	Socket      string // of the node; empty: none is looked at
	MaxSandbox  int    // how many sandboxes the node may run; 0: 1000
	Root        string // of the host's files; tests
	Release     string // of the kernel; tests
	VersionLine string // of uname; tests
}

// Look makes the report.
func Look(o Options) (Report, error) {
	if o.MaxSandbox == 0 {
		o.MaxSandbox = 1000
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Report{}, fmt.Errorf("name of the kernel: %w", err)
	}
	if o.Release == "" {
		o.Release, o.VersionLine = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:])
	}
	r := Report{Version: o.Version, Time: time.Now().UTC(), Host: unix.ByteSliceToString(u.Nodename[:]), Kernel: o.Release}
	abi, err := boot.LandlockVersion()
	if err != nil {
		return Report{}, err
	}
	for _, name := range []string{"default", "strict"} {
		p, err := profile(name)
		if err != nil {
			return Report{}, err
		}
		p.Landlock = landlock(abi)
		r.Profiles = append(r.Profiles, p)
	}
	host := hostFiles{root: o.Root}
	v, known := upstream(o.Release, o.VersionLine, host.read("/proc/version_signature"))
	if known {
		r.Upstream = v.String()
	}
	r.Kernels = weaknesses(v, known, host, r.Profiles)
	r.Settings = append(settings(o, host), landlockFinding(abi))
	return r, nil
}

// Open lists what is open.
func (r Report) Open() []Finding {
	var out []Finding
	for _, list := range [][]Finding{r.Kernels, r.Settings} {
		for _, f := range list {
			if f.State == Open {
				out = append(out, f)
			}
		}
	}
	return out
}
