package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// stdio makes /dev/null of the sandbox PID 1's stdin, stdout and stderr, and names its main thread.
func stdio() error {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	for i := range 3 {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("set descriptor %d: %w", i, err)
		}
	}
	unix.Umask(0o022)
	return unix.Close(fd)
}

// loopbackUp brings the loopback interface up; the kernel gives it its addresses then. In a network namespace that the host made it is
// up already, and PID 1 may not change it.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("look at lo: %w", err)
	}
	if req.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// maxNameFile is how much of a template's name file is read.
const maxNameFile = 64 << 10

// names sets the host name and makes it resolvable without a name server, which sudo among others waits for. A template's
// own /etc/hosts is kept and added to; its /etc/resolv.conf is kept. All is written into the sandbox's own layer.
func names(hostname string) error {
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", hostname, err)
	}
	if err := os.Mkdir("/etc", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := rewrite("/etc/hostname", func([]byte, bool) []byte { return []byte(hostname + "\n") }); err != nil {
		return err
	}
	if err := rewrite("/etc/hosts", func(old []byte, exists bool) []byte { return hosts(old, exists, hostname) }); err != nil {
		return err
	}
	return rewrite("/etc/resolv.conf", func(old []byte, exists bool) []byte {
		if exists {
			return old
		}
		return []byte("# no name server\n")
	})
}

func hosts(old []byte, exists bool, hostname string) []byte {
	if !exists || len(bytes.TrimSpace(old)) == 0 {
		old = []byte("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
	}
	for line := range bytes.Lines(old) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		if f := bytes.Fields(line); len(f) > 1 {
			for _, name := range f[1:] {
				if string(name) == hostname {
					return old
				}
			}
		}
	}
	if old[len(old)-1] != '\n' {
		old = append(old[:len(old):len(old)], '\n')
	}
	return append(old[:len(old):len(old)], "127.0.1.1 "+hostname+"\n"...)
}

// rewrite replaces the content of a file where it changes. What is no regular file is left alone: a template may have its
// reasons for a link there.
func rewrite(path string, change func(old []byte, exists bool) []byte) error {
	var old []byte
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	exists := err == nil
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil
	case err == nil:
		st, err := f.Stat()
		if err == nil && st.Mode().IsRegular() {
			old, err = io.ReadAll(io.LimitReader(f, maxNameFile+1))
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if !st.Mode().IsRegular() || len(old) > maxNameFile {
			return nil
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("read: %w", err)
	}
	b := change(old, exists)
	if exists && bytes.Equal(b, old) {
		return nil
	}
	if f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
