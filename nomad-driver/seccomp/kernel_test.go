package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childEnv tells the test binary that it is the process to filter: its value is the name of what to try.
const childEnv = "SECCOMP_TEST_CHILD"

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		fmt.Println(attempt(name))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// attempt puts this process under the default filter and makes one system call.
func attempt(name string) error {
	b, err := Program("default")
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(b)/8)
	for i := range filter {
		p := b[i*8:]
		filter[i] = unix.SockFilter{Code: binary.NativeEndian.Uint16(p), Jt: p[2], Jf: p[3], K: binary.NativeEndian.Uint32(p[4:])}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	call := func(nr uintptr, args ...uintptr) error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
			return e
		}
		return nil
	}
	switch name {
	case "unshare":
		return call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	case "mount":
		return unix.Mount("none", "/proc", "tmpfs", 0, "")
	case "io_uring":
		return call(unix.SYS_IO_URING_SETUP, 1, 0)
	case "alg":
		_, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
		return err
	case "x32":
		return call(0x40000000 | unix.SYS_GETPID)
	case "inet":
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		return err
	case "exec": // a program of another libc, with threads and children
		out, err := exec.Command("/bin/sh", "-c", "echo $(id -u | cat)").Output()
		if err == nil && len(out) == 0 {
			return errors.New("no output")
		}
		return err
	}
	return fmt.Errorf("unknown attempt %q", name)
}

func TestFilter_holdsInTheKernel(t *testing.T) {
	for _, tt := range []struct{ name, want string }{
		{"unshare", "operation not permitted"},
		{"mount", "operation not permitted"},
		{"io_uring", "function not implemented"},
		{"alg", "address family not supported by protocol"},
		{"inet", "<nil>"},
		{"exec", "<nil>"},
		{"x32", "killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), childEnv+"="+tt.name)
			out, err := cmd.CombinedOutput()
			got := strings.TrimSpace(string(out))
			var exit *exec.ExitError
			if errors.As(err, &exit) && strings.Contains(exit.Error(), "bad system call") {
				got = "killed"
			} else if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}
