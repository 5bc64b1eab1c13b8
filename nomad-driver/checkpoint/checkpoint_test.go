package checkpoint

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/userns"
)

// holdEnv makes this program a process that holds what no checkpoint can, until its stdin ends.
const holdEnv = "SOULBOX_TEST_HOLD"

func TestMain(m *testing.M) {
	if os.Getenv(traceEnv) != "" {
		trace()
	}
	if os.Getenv(holdEnv) == "" {
		os.Exit(m.Run())
	}
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	fail(err)
	_, err = unix.FanotifyInit(unix.FAN_CLASS_NOTIF, unix.O_RDONLY)
	fail(err)
	_, err = unix.Open("/dev/kmsg", unix.O_RDONLY, 0)
	fail(err)
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

func good() Dump {
	return Dump{
		Version: 1, Exit: "file[1f:2a]", Listener: "socket:[123]", CRIU: "4.2.1",
		Mounts: []Mount{{Point: "/dev/null", Source: "null"}, {Point: initPoint, Source: sourceInit}},
	}
}

// A manifest that names anything else than what a sandbox has is refused before CRIU runs.
func TestDump_checkRefusesWhatNoSandboxHas(t *testing.T) {
	must.NoError(t, good().Check())
	for name, change := range map[string]func(*Dump){
		"version":            func(d *Dump) { d.Version = DumpVersion + 1 },
		"no version":         func(d *Dump) { d.Version = 0 },
		"path of the host":   func(d *Dump) { d.Mounts[0].Source = "/etc" },
		"way out":            func(d *Dump) { d.Mounts[0].Source = "../etc" },
		"device of a disk":   func(d *Dump) { d.Mounts[0].Source = "sda" },
		"memory":             func(d *Dump) { d.Mounts[0].Source = "mem" },
		"nothing":            func(d *Dump) { d.Mounts[0].Source = "" },
		"relative point":     func(d *Dump) { d.Mounts[0].Point = "dev/null" },
		"point with dots":    func(d *Dump) { d.Mounts[0].Point = "/dev/../etc/x" },
		"point with slashes": func(d *Dump) { d.Mounts[0].Point = "/dev//null" },
		"long point":         func(d *Dump) { d.Mounts[0].Point = "/" + strings.Repeat("x", 5000) },
		"no point":           func(d *Dump) { d.Mounts[0].Point = "" },
		"too many mounts": func(d *Dump) {
			for range maxMounts {
				d.Mounts = append(d.Mounts, Mount{Point: "/dev/null", Source: "null"})
			}
		},
		"memory of no size":    func(d *Dump) { d.Mounts[0].Bytes = -1 },
		"much memory":          func(d *Dump) { d.Mounts[0].Bytes = 1<<50 + 1 },
		"exit of another kind": func(d *Dump) { d.Exit = "net[4026531992]:host" },
		"exit with more":       func(d *Dump) { d.Exit = "file[1f:2a]extra" },
		"exit missing":         func(d *Dump) { d.Exit = "" },
		"socket of a name":     func(d *Dump) { d.Listener = "socket:[/run/node.sock]" },
		"socket with more":     func(d *Dump) { d.Listener = "socket:[123]x" },
		"socket missing":       func(d *Dump) { d.Listener = "" },
		"file for a socket":    func(d *Dump) { d.Listener = "file[1:2]" },
	} {
		t.Run(name, func(t *testing.T) {
			d := good()
			change(&d)
			must.Error(t, d.Check())
		})
	}
}

func usernsImage(t *testing.T, maps ...*userns.UidGidExtent) []byte {
	t.Helper()
	body, err := proto.Marshal(&userns.UsernsEntry{UidMap: maps, GidMap: maps})
	must.NoError(t, err)
	b := binary.LittleEndian.AppendUint32(nil, commonMagic)
	b = binary.LittleEndian.AppendUint32(b, usernsMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

func extent(first, lower, count uint32) *userns.UidGidExtent {
	return &userns.UidGidExtent{First: proto.Uint32(first), LowerFirst: proto.Uint32(lower), Count: proto.Uint32(count)}
}

func TestRebased_takesTheIDsOfASandboxAlone(t *testing.T) {
	b := usernsImage(t, extent(0, 1<<20, idCount))
	out, changed, err := rebased(b, 1<<20)
	must.NoError(t, err)
	must.False(t, changed)
	must.Eq(t, b, out)
	out, changed, err = rebased(b, 1<<21)
	must.NoError(t, err)
	must.True(t, changed)
	must.Eq(t, usernsImage(t, extent(0, 1<<21, idCount)), out)

	cut := usernsImage(t, extent(0, 1<<20, idCount))
	for name, b := range map[string][]byte{
		"root of the host":  usernsImage(t, extent(0, 0, 1), extent(1, 1<<20, idCount)),
		"more ids":          usernsImage(t, extent(0, 1<<20, idCount+1)),
		"all ids":           usernsImage(t, extent(0, 0, 1<<32-1)),
		"not from 0":        usernsImage(t, extent(1, 1<<20, idCount)),
		"no ids":            usernsImage(t),
		"another image":     append([]byte{1, 2, 3, 4}, cut[4:]...),
		"cut":               cut[:len(cut)-1],
		"longer":            append(append([]byte(nil), cut...), 0),
		"head alone":        cut[:12],
		"nothing":           nil,
		"not what it says":  append(append([]byte(nil), cut[:12]...), make([]byte, len(cut)-12)...),
		"length of 4 gibis": append(append(append([]byte(nil), cut[:8]...), 255, 255, 255, 255), cut[12:]...),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := rebased(b, 1<<21)
			must.Error(t, err)
		})
	}
}

func FuzzRebased(f *testing.F) {
	f.Add([]byte{0x19, 0x43, 0x56, 0x54, 0x06, 0x49, 0x47, 0x55, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _, err := rebased(b, 1<<21)
		if err != nil {
			return
		}
		again, changed, err := rebased(out, 1<<21)
		must.NoError(t, err)
		must.False(t, changed)
		must.Eq(t, out, again)
	})
}

func TestParseMount_readsWhatTheKernelWrites(t *testing.T) {
	m, err := parseMount(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`)
	must.NoError(t, err)
	must.Eq(t, mountLine{id: 36, root: "/mnt1", point: "/mnt 2", fsType: "ext3"}, m)
	m, err = parseMount(`37 35 0:50 / /proc/acpi ro,nosuid - tmpfs none rw,size=4k`)
	must.NoError(t, err)
	must.True(t, m.readOnly)
	must.EqOp(t, 4<<10, m.bytes)
	for _, bad := range []string{"", "36 35 98:0 / /mnt", "36 35 98:0 / /mnt rw", " - ext3", "x 35 98:0 / /mnt rw - ext3", "36 35 0:5 / /mnt rw - tmpfs none size=1g", "36 35 0:5 / /mnt rw - tmpfs none size=-4k"} {
		_, err := parseMount(bad)
		must.Error(t, err, must.Sprint(bad))
	}
}

// What no checkpoint can hold is told by process and by name.
func TestObstacles_areNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	self, err := os.Executable()
	must.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), holdEnv+"=1")
	in, err := cmd.StdinPipe()
	must.NoError(t, err)
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		must.NoError(t, in.Close())
		must.NoError(t, cmd.Wait())
	})
	b := make([]byte, 100)
	n, err := out.Read(b)
	must.NoError(t, err)
	must.Eq(t, "ready\n", string(b[:n]))
	found, err := Obstacles(cmd.Process.Pid, []int{cmd.Process.Pid, 1 << 30}) // the second has ended
	must.NoError(t, err)
	var all []string
	for _, o := range found {
		must.Eq(t, cmd.Process.Pid, o.PID)
		all = append(all, o.String())
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{"a socket AF_PACKET open", "fanotify open", "the device /dev/kmsg open"} {
		must.StrContains(t, text, want)
	}
	must.Len(t, 3, found, must.Sprint(text))
}
