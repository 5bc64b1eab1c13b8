package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// int80 enters the kernel by the door of 32-bit programs, where the same number means another call.
func int80(nr, a, b, c uintptr) uintptr

// pins keeps what raw calls point to alive.
var pins runtime.Pinner

// pointer is the address of p, which stays where it is until the process ends.
func pointer[T any](p *T) uintptr {
	pins.Pin(p)
	return uintptr(unsafe.Pointer(p))
}

const x32 = 0x40000000

func init() {
	legacy := func(nr, a, b, c uintptr) func() string {
		return func() string {
			if r := int(int32(int80(nr, a, b, c))); r < 0 {
				return "entered: " + answer(unix.Errno(-r))
			}
			return "ok"
		}
	}
	cases["K12"] = []attempt{
		{"int 0x80 getpid", legacy(20, 0, 0, 0)},
		{"int 0x80 mount", legacy(21, 0, 0, 0)},
		{"int 0x80 socketcall", legacy(102, 1, 0, 0)},
		{"int 0x80 unshare", legacy(310, unix.CLONE_NEWUSER, 0, 0)},
		{"x32 getpid", func() string { return call(x32 | unix.SYS_GETPID) }},
		{"x32 mount", func() string { return call(x32 | unix.SYS_MOUNT) }},
		{"x32 ioctl", func() string { return call(x32 | 514) }},
		{"x32 io_uring_setup", func() string { return call(x32 | unix.SYS_IO_URING_SETUP) }},
		{"a 32-bit program", program32},
	}
}

// program32 makes a program for i386 that exits with 7, and starts it.
func program32() string {
	const base, header = 0x10000, 52 + 32
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (exit)
		0xbb, 7, 0, 0, 0, // mov ebx, 7
		0xcd, 0x80, // int 0x80
	}
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, v := range []any{
		uint16(2), uint16(3), uint32(1), uint32(base + header), uint32(52), uint32(0), uint32(0), // executable, i386, entry
		uint16(52), uint16(32), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(0), uint32(base), uint32(base), uint32(header + len(code)), uint32(header + len(code)), uint32(5), uint32(4096),
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return err.Error()
		}
	}
	b.Write(code)
	path := "/home/user/program32"
	if err := os.WriteFile(path, b.Bytes(), 0o755); err != nil {
		return answer(err)
	}
	return answer(unix.Exec(path, []string{path}, nil))
}
