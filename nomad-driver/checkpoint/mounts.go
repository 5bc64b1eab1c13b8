package checkpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Sources of mounts that come from outside: nothing else is ever bound into a restored sandbox.
const (
	sourceInit = "init" // PID 1's binary
	// and the devices: their words are their names in /dev
)

var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// maxMounts bounds the mounts of a sandbox.
const maxMounts = 256

// key names a mount in the images. Each has its own, because CRIU takes two with one name for the same mount.
func (m Mount) key() string { return m.Source + "@" + m.Point }

// path returns where the source is on this machine.
func (m Mount) path(init string) (string, error) {
	if m.Source == sourceInit {
		return init, nil
	}
	for _, d := range devices {
		if m.Source == d {
			return "/dev/" + d, nil
		}
	}
	return "", fmt.Errorf("mount %s: source %.40q is none that a sandbox has", m.Point, m.Source)
}

// outsideMounts returns the mounts of a process's namespace whose content is not the sandbox's own.
func outsideMounts(pid int) ([]Mount, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return nil, err
	}
	var out []Mount
	n := 0
	for line := range strings.Lines(string(b)) {
		if n++; n > maxMounts {
			return nil, fmt.Errorf("process %d has more than %d mounts", pid, maxMounts)
		}
		m, err := parseMount(line)
		if err != nil {
			return nil, fmt.Errorf("mounts of process %d: %w", pid, err)
		}
		switch {
		case m.point == "/", m.fsType == "proc", m.fsType == "devpts", m.fsType == "mqueue":
		case m.point == initPoint:
			out = append(out, Mount{Point: m.point, Source: sourceInit})
		case m.fsType == "tmpfs" && m.root == "/":
		case device(m.root):
			out = append(out, Mount{Point: m.point, Source: m.root[strings.LastIndexByte(m.root, '/')+1:]})
		default:
			return nil, fmt.Errorf("mount %s of type %s in process %d is none that a sandbox has", m.point, m.fsType, pid)
		}
	}
	return out, nil
}

// initPoint is where PID 1's binary is mounted inside.
const initPoint = "/.soulbox/init"

func device(root string) bool {
	name := root[strings.LastIndexByte(root, '/')+1:]
	for _, d := range devices {
		if name == d {
			return true
		}
	}
	return false
}

type mountLine struct{ root, point, fsType string }

// parseMount reads a line of mountinfo.
func parseMount(line string) (mountLine, error) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 1 {
		return mountLine{}, fmt.Errorf("line %.100q is not one of mountinfo", line)
	}
	return mountLine{root: unescape(f[3]), point: unescape(f[4]), fsType: g[0]}, nil
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
