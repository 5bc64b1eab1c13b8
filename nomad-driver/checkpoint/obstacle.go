package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Obstacle is something that no checkpoint can hold.
type Obstacle struct {
	PID  int    // inside the sandbox
	Name string // of the program
	What string
}

func (o Obstacle) String() string {
	return fmt.Sprintf("process %d (%s) has %s", o.PID, o.Name, o.What)
}

// maxObstacles bounds how many are told of.
const maxObstacles = 16

// Obstacles looks for what cannot be checkpointed in the processes of a tree whose root is root. What ends meanwhile is left out.
func Obstacles(root int, pids []int) ([]Obstacle, error) {
	own := map[string]string{}
	for _, ns := range []string{"user", "pid", "mnt", "net", "ipc", "uts"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", root, ns))
		if err != nil {
			return nil, fmt.Errorf("namespaces of process %d: %w", root, err)
		}
		own[ns] = link
	}
	var found []Obstacle
	for _, pid := range pids {
		o := &look{pid: pid, own: own}
		if err := o.all(); err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			return nil, fmt.Errorf("look at process %d: %w", pid, err)
		}
		if found = append(found, o.found...); len(found) >= maxObstacles {
			return found[:maxObstacles], nil
		}
	}
	queues, err := messageQueues(root, maxObstacles-len(found))
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("message queues of process %d: %w", root, err)
	}
	for _, q := range queues {
		found = append(found, Obstacle{PID: 1, Name: "init", What: fmt.Sprintf("the message queue /%.100s (mq_overview(7)) to keep", q)})
	}
	return found, nil
}

const (
	queuesPoint = "dev/mqueue" // in a sandbox's root
	queuesMagic = 0x19800202   // ipc/mqueue.c
)

// messageQueues names queues of POSIX messages, whether or not somebody has them open. CRIU holds none.
func messageQueues(root, most int) (names []string, err error) {
	inside, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", root))
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	dir, err := inside.OpenFile(queuesPoint, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil //nolint:nilerr // the sandbox has done away with it
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil || st.Type != queuesMagic {
		return nil, err
	}
	if names, err = dir.Readdirnames(most); errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// look is the look at one process.
type look struct {
	pid    int
	own    map[string]string
	inside int
	name   string
	found  []Obstacle
}

func (l *look) add(format string, args ...any) {
	l.found = append(l.found, Obstacle{PID: l.inside, Name: l.name, What: fmt.Sprintf(format, args...)})
}

func (l *look) all() error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid))
	if err != nil {
		return err
	}
	tracer := "0"
	for line := range strings.Lines(string(status)) {
		key, v, _ := strings.Cut(line, ":")
		v = strings.TrimSpace(v)
		switch key {
		case "Name":
			l.name = v
		case "TracerPid":
			tracer = v
		case "NSpid":
			f := strings.Fields(v)
			if _, err := fmt.Sscan(f[len(f)-1], &l.inside); err != nil {
				return err
			}
			if len(f) > 2 {
				l.add("a pid namespace of its own")
			}
		case "State":
			if strings.HasPrefix(v, "Z") {
				return nil
			}
		}
	}
	if tracer != "0" {
		l.add("a debugger attached (ptrace)")
	}
	for ns, want := range l.own {
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", l.pid, ns)); err == nil && link != want && ns != "pid" {
			l.add("a %s namespace of its own", ns)
		}
	}
	return l.files()
}

// anonymous are the kinds of nameless files that CRIU knows.
var anonymous = map[string]bool{"[eventpoll]": true, "[eventfd]": true, "inotify": true, "[signalfd]": true, "[timerfd]": true, "[pidfd]": true}

// families are the sockets that CRIU knows, with the words of those that are refused most.
var families = map[int]bool{unix.AF_UNIX: true, unix.AF_INET: true, unix.AF_INET6: true, unix.AF_NETLINK: true}

var familyNames = map[int]string{unix.AF_ALG: "AF_ALG", unix.AF_PACKET: "AF_PACKET", unix.AF_VSOCK: "AF_VSOCK", unix.AF_RXRPC: "AF_RXRPC", unix.AF_BLUETOOTH: "AF_BLUETOOTH"}

func (l *look) files() error {
	dir := fmt.Sprintf("/proc/%d/fd", l.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	pidfd := -1
	defer func() {
		if pidfd >= 0 {
			_ = unix.Close(pidfd)
		}
	}()
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil {
			continue
		}
		switch kind, rest, _ := strings.Cut(target, ":"); {
		case kind == "anon_inode" && !anonymous[rest]:
			l.add("%s open (descriptor %s)", strings.Trim(rest, "[]"), e.Name())
		case kind == "socket":
			if pidfd < 0 {
				if pidfd, err = unix.PidfdOpen(l.pid, 0); err != nil {
					return err
				}
			}
			family, err := socketOption(pidfd, e.Name(), unix.SO_DOMAIN)
			if errors.Is(err, unix.EBADF) {
				continue
			}
			if err != nil {
				return err
			}
			if !families[family] {
				name := familyNames[family]
				if name == "" {
					name = fmt.Sprintf("of family %d", family)
				}
				l.add("a socket %s open (descriptor %s)", name, e.Name())
			}
		case strings.HasPrefix(target, "/"):
			l.device(dir+"/"+e.Name(), target, e.Name())
		}
	}
	return nil
}

// memoryDevices are the minor numbers of those that a sandbox has: null, zero, full, random, urandom.
var memoryDevices = map[uint32]bool{3: true, 5: true, 7: true, 8: true, 9: true}

// device tells of an open device that a sandbox does not have. Memory devices and terminals are held.
func (l *look) device(path, target, fd string) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if major == 1 && memoryDevices[minor] || major == 5 && (minor == 0 || minor == 2) || major >= 136 && major <= 143 {
			return
		}
	case unix.S_IFBLK:
	default:
		return
	}
	l.add("the device %s open (descriptor %s)", target, fd)
}
