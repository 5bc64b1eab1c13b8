package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/boot"
)

// Sources of mounts that come from outside: nothing else is ever bound into a restored sandbox.
const (
	sourceInit = "init" // PID 1's binary
	// and the devices: their words are their names in /dev; and what package boot has a word for
)

// inMemory are the file systems in memory of a sandbox, by where they are. One that holds what a new one does is not in the images: CRIU takes five
// milliseconds to archive each of them, and as many to fill it again.
var inMemory = map[string]string{"/tmp": boot.MemoryTmp, "/dev/shm": boot.MemoryShm, "/dev": boot.MemoryDev, "/.soulbox": boot.MemoryProgram}

// devices are the names of those that a sandbox has.
var devices = boot.Devices()

// maxMounts bounds the mounts of a sandbox.
const maxMounts = 256

// key names a mount in the images. Each has its own, because CRIU takes two with one name for the same mount.
func (m Mount) key() string { return m.Source + "@" + m.Point }

// Memory reports whether the source is one of the file systems in memory that package boot makes.
func (m Mount) Memory() bool {
	switch m.Source {
	case boot.MemoryTmp, boot.MemoryShm, boot.MemoryDev, boot.MemoryProgram, boot.MemoryNothing:
		return true
	}
	return false
}

// Device reports whether the source is a device.
func (m Mount) Device() bool { return slices.Contains(devices, m.Source) }

// path returns where the source is, in the folder of what comes from outside.
func (m Mount) path(outside string) (string, error) {
	if m.Source == sourceInit || m.Memory() || m.Device() {
		return filepath.Join(outside, m.Source), nil
	}
	return "", fmt.Errorf("mount %s: source %.40q is none that a sandbox has", m.Point, m.Source)
}

// outsideMounts returns the mounts of a process's namespace whose content is not the sandbox's own. The process stands still, and id is the host's of its root.
func outsideMounts(pid int, id uint32) ([]Mount, error) {
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
			word, err := newMemory(pid, id, m)
			if err != nil {
				return nil, fmt.Errorf("mount %s of process %d: %w", m.point, pid, err)
			}
			if word != "" {
				out = append(out, Mount{Point: m.point, Source: word, Bytes: m.bytes})
			}
		case slices.Contains(devices, filepath.Base(m.root)):
			out = append(out, Mount{Point: m.point, Source: filepath.Base(m.root)})
		default:
			return nil, fmt.Errorf("mount %s of type %s in process %d is none that a sandbox has", m.point, m.fsType, pid)
		}
	}
	return out, nil
}

// newMemory returns the word of a file system in memory that holds what a new one does; empty: it holds more, or is another one.
func newMemory(pid int, id uint32, m mountLine) (word string, err error) {
	word, ok := inMemory[m.point]
	if !ok && m.readOnly {
		word, ok = boot.MemoryNothing, true
	}
	if !ok {
		return "", nil
	}
	dir, err := os.OpenFile(fmt.Sprintf("/proc/%d/root%s", pid, m.point), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	var st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return "", err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 || st.Mnt_id != m.id {
		return "", nil // something is on top of it
	}
	if is, err := boot.IsNewMemory(word, dir, id); err != nil || !is {
		return "", err
	}
	return word, nil
}

// initPoint is where PID 1's binary is mounted inside.
const initPoint = "/.soulbox/init"

type mountLine struct {
	id                  uint64
	root, point, fsType string
	readOnly            bool  // this mount, whatever the file system is
	bytes               int64 // size of a tmpfs; 0: it does not say
}

// parseMount reads a line of mountinfo.
func parseMount(line string) (mountLine, error) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 1 {
		return mountLine{}, fmt.Errorf("line %.100q is not one of mountinfo", line)
	}
	id, err := strconv.ParseUint(f[0], 10, 64)
	if err != nil {
		return mountLine{}, fmt.Errorf("mount id of line %.100q is no number", line)
	}
	var bytes int64
	if len(g) > 2 && g[0] == "tmpfs" {
		for option := range strings.SplitSeq(g[2], ",") {
			if size, ok := strings.CutPrefix(option, "size="); ok {
				if bytes, err = kibibytes(size); err != nil {
					return mountLine{}, fmt.Errorf("line %.200q: %w", line, err)
				}
			}
		}
	}
	return mountLine{
		bytes: bytes, id: id, root: unescape(f[3]), point: unescape(f[4]), fsType: g[0], readOnly: slices.Contains(strings.Split(f[5], ","), "ro"),
	}, nil
}

// maxMemory bounds the size of a file system in memory.
const maxMemory = 1 << 50

// kibibytes reads a size as a tmpfs tells it: "64k".
func kibibytes(s string) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSuffix(s, "k"), 10, 64)
	if err != nil || !strings.HasSuffix(s, "k") || n < 0 || n > maxMemory>>10 {
		return 0, fmt.Errorf("size %.40q is none", s)
	}
	return n << 10, nil
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
