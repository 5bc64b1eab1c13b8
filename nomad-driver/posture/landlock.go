package posture

import (
	"fmt"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/boot"
)

// landlock says what Landlock of that version keeps from every process of a sandbox.
func landlock(abi int) []Item {
	if abi < boot.LandlockABI {
		return []Item{{"nothing", "this kernel has none that a sandbox can use"}}
	}
	items := []Item{
		{"mounts", "none is made, moved, changed or removed, whatever capability somebody comes by"},
		{"device nodes", "none is made"},
	}
	if abi >= boot.LandlockIoctlABI {
		items = append(items, Item{"ioctls", "of no device outside /dev"})
	}
	if abi >= boot.LandlockScopesABI {
		items = append(items, Item{"signals", "to no process outside; PID 1 is one until the sandbox has been restored"})
	}
	return items
}

// landlockFinding says what of it this kernel lacks. It is never open: all of it is a second wall.
func landlockFinding(abi int) Finding {
	f := Finding{ID: "landlock", Title: "Landlock, the wall behind namespaces, filter and capabilities"}
	switch {
	case abi >= boot.LandlockScopesABI:
		f.State, f.Detail = Closed, fmt.Sprintf("version %d: all that a sandbox can use", abi)
		return f
	case abi >= boot.LandlockIoctlABI:
		f.Detail = fmt.Sprintf("version %d: signals are held by the pid namespace alone (Linux 6.12)", abi)
	case abi >= boot.LandlockABI:
		f.Detail = fmt.Sprintf("version %d: signals are held by the pid namespace alone (Linux 6.12), and ioctls of devices by the filter, the mounts and the device control group alone (Linux 6.10)", abi)
	default:
		f.Detail = "there is none of version 2 or later: the other walls stand alone"
		f.Advice = "Linux 5.19 or later with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's lsm="
	}
	f.State = Mitigated
	return f
}
