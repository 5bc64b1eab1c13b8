package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is a character device that processes of one group may open, besides those that every group's may.
type Device struct {
	Major, Minor uint32
	Access       string // "r", "w" or "rw"
}

// device is a character device that a process of a sandbox may open. None may be made.
type device struct {
	major  int32
	minor  int32 // anyMinor: all
	access string
}

const (
	anyMinor  = -1
	readWrite = "rw"
)

// line is the device in a list of v1.
func (d device) line() string {
	minor := "*"
	if d.minor != anyMinor {
		minor = strconv.Itoa(int(d.minor))
	}
	return fmt.Sprintf("c %d:%s %s", d.major, minor, d.access)
}

// devices are those of every sandbox: null, zero, full, random, urandom, tty, ptmx and the terminals of devpts. There is nothing in
// its /dev besides, but for what it was given of its own; this is the second wall.
var devices = []device{
	{1, 3, readWrite}, {1, 5, readWrite}, {1, 7, readWrite}, {1, 8, readWrite}, {1, 9, readWrite}, {5, 0, readWrite}, {5, 2, readWrite},
	{136, anyMinor, readWrite},
}

// allowed are the devices of a group that has some of its own.
func allowed(own []Device) []device {
	list := slices.Clone(devices)
	for _, d := range own {
		list = append(list, device{int32(d.Major), int32(d.Minor), d.Access})
	}
	return list
}

// instruction is struct bpf_insn: the destination register is the low half of regs, the source the high one.
type instruction struct {
	code   uint8
	regs   uint8
	offset int16
	imm    int32
}

// Opcodes, fields of struct bpf_cgroup_dev_ctx and its values that the program needs.
const (
	bpfLoad      = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	bpfMove      = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	bpfSet       = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	bpfAnd       = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	bpfShift     = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	bpfIfAny     = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfIfUnequal = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	bpfReturn    = unix.BPF_JMP | unix.BPF_EXIT

	accessField, majorField, minorField = 0, 4, 8 // access: type in the low 16 bits, what is wanted in the high ones

	typeChar    = 2
	accessMknod = 1
	accessRead  = 2
	accessWrite = 4
)

// deviceProgram returns 1 for what devices allow, in r0, else 0.
func deviceProgram(allowed []device) []instruction {
	const r0, r1, r2, r3, r4, r5 = 0, 1, 2, 3, 4, 5
	load := func(dst uint8, field int16) instruction { return instruction{bpfLoad, dst | r1<<4, field, 0} }
	var checks []instruction
	for _, d := range allowed {
		check := []instruction{{bpfIfUnequal, r4, 0, d.major}}
		if d.minor != anyMinor {
			check = append(check, instruction{bpfIfUnequal, r5, 0, d.minor})
		}
		if no := d.refused(); no != 0 {
			check = append(check, instruction{bpfIfAny, r2, 0, no})
		}
		for i := range check { // to the next device's check
			check[i].offset = int16(len(check) - i + 1)
		}
		checks = append(checks, append(check, instruction{bpfSet, r0, 0, 1}, instruction{bpfReturn, 0, 0, 0})...)
	}
	head := []instruction{
		load(r2, accessField),
		{bpfMove, r3 | r2<<4, 0, 0},
		{bpfAnd, r3, 0, 0xffff},
		{bpfShift, r2, 0, 16},
		load(r4, majorField),
		load(r5, minorField),
		{bpfIfUnequal, r3, int16(1 + len(checks)), typeChar},
		{bpfIfAny, r2, int16(len(checks)), accessMknod},
	}
	return append(append(head, checks...), instruction{bpfSet, r0, 0, 0}, instruction{bpfReturn, 0, 0, 0})
}

// refused is what may not be wanted of a device, as bits of an access.
func (d device) refused() (bits int32) {
	if !strings.Contains(d.access, "r") {
		bits |= accessRead
	}
	if !strings.Contains(d.access, "w") {
		bits |= accessWrite
	}
	return bits
}

func encodeProgram(prog []instruction) []byte {
	var b []byte
	for _, i := range prog {
		b = append(b, i.code, i.regs)
		b = binary.NativeEndian.AppendUint16(b, uint16(i.offset))
		b = binary.NativeEndian.AppendUint32(b, uint32(i.imm))
	}
	return b
}

// guardDevices attaches the program to the group at dir, for it and for all below it that have none of their own. One that is there from
// before is replaced. The kernel keeps it as long as the group exists.
func guardDevices(dir string, allowed []device) (err error) {
	group, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("guard devices: %w", err)
	}
	defer func() { err = errors.Join(err, group.Close()) }()
	prog, err := loadProgram(deviceProgram(allowed))
	if err != nil {
		return err
	}
	attr := struct{ target, prog, kind, flags uint32 }{
		target: uint32(group.Fd()), prog: uint32(prog), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_OVERRIDE,
	}
	_, aerr := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if errors.Is(aerr, unix.EPERM) { // one that an earlier version attached lets nobody replace it
		was := struct{ target, prog, kind, flags uint32 }{target: attr.target, kind: attr.kind}
		if _, err := bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&was), unsafe.Sizeof(was)); err == nil {
			_, aerr = bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		}
	}
	if err = errors.Join(aerr, unix.Close(prog)); err != nil {
		return fmt.Errorf("guard devices: attach program to %s: %w", dir, err)
	}
	return nil
}

func loadProgram(prog []instruction) (int, error) {
	code, license := encodeProgram(prog), []byte("Dual MPL/GPL\x00")
	log := make([]byte, 4096)
	// The kernel gets their addresses as numbers, which do not follow a stack that moves.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&code[0])
	pin.Pin(&license[0])
	pin.Pin(&log[0])
	attr := struct { // the beginning of union bpf_attr for BPF_PROG_LOAD
		kind, count        uint32
		insns, license     uint64
		logLevel, logSize  uint32
		logBuf             uint64
		kernelVersion, flg uint32
		name               [16]byte
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(prog)), insns: address(code), license: address(license),
		logLevel: 1, logSize: uint32(len(log)), logBuf: address(log),
	}
	copy(attr.name[:], "soulbox_devices")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("guard devices: load program (needs Linux 4.15 with CONFIG_CGROUP_BPF): %w: %s", err, unix.ByteSliceToString(log))
	}
	return fd, nil
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	runtime.KeepAlive(attr)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
