package sandbox

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
)

// meter holds open what a sandbox's usage is read from, from the first reading to the sandbox's end: six descriptors. Opening them for each
// reading costs five times as much as the readings. That of the network keeps the namespace alive, so the end closes it before Done.
type meter struct {
	mu    sync.Mutex
	group *cgroup.Meter // nil: not open
	net   int           // of /proc/PID/net/dev
	ended bool
}

var errMeterEnded = errors.New("it has ended")

func (m *meter) read(s *Sandbox) (u cgroup.Usage, in, out uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return u, 0, 0, fmt.Errorf("usage of sandbox %s: %w", s.ref.ID, errMeterEnded)
	}
	if m.group == nil {
		if err := m.open(s); err != nil {
			return u, 0, 0, err
		}
	}
	u, err = m.group.Usage()
	if err == nil {
		if in, out, err = readNetwork(m.net); err != nil {
			err = fmt.Errorf("network usage of sandbox %s: %w", s.ref.ID, err)
		}
	}
	// The pid was its own when its file was opened where its process has not ended since.
	if err == nil && s.gone() {
		err = fmt.Errorf("usage of sandbox %s: %w", s.ref.ID, errMeterEnded)
	}
	if err != nil || m.net >= keptBelow() {
		err = errors.Join(err, m.close())
	}
	return u, in, out, err
}

// charged is cgroup.Group.Charged, from the open file where there is one: it opens none.
func (m *meter) charged(s *Sandbox) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.group == nil {
		return s.group.Charged()
	}
	return m.group.Charged()
}

func (m *meter) open(s *Sandbox) error {
	group, err := s.group.Meter()
	if err != nil {
		return err
	}
	// Without what makes a file fit for polling, which costs more than reading it.
	fd, err := unix.Open(procPath(s.ref.PID, "net/dev"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(fmt.Errorf("network usage of sandbox %s: %w", s.ref.ID, err), group.Close())
	}
	m.group, m.net = group, fd
	return nil
}

func (m *meter) close() error {
	if m.group == nil {
		return nil
	}
	err := errors.Join(m.group.Close(), unix.Close(m.net))
	m.group = nil
	return err
}

// end closes it for good.
func (m *meter) end() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	return m.close()
}

// keptBelow is from which descriptor on none is kept: half of what this process may have is for its other work, and the kernel gives the lowest.
var keptBelow = sync.OnceValue(func() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return int(min(l.Cur, math.MaxInt32) / 2)
})

// maxNetworkFile bounds what is read of /proc/PID/net/dev: a sandbox may make interfaces.
const maxNetworkFile = 64 << 10

// A line of that file is shorter than this: a name and 16 numbers.
const networkLine = 512

var networkFiles = sync.Pool{New: func() any { return new([maxNetworkFile]byte) }}

// readNetwork adds up the interfaces in an open /proc/PID/net/dev.
func readNetwork(fd int) (in, out uint64, err error) {
	buf := networkFiles.Get().(*[maxNetworkFile]byte)
	defer networkFiles.Put(buf)
	n := 0
	for n < len(buf) {
		k, err := unix.Pread(fd, buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		n += k
		// The kernel hands out whole lines, as many as its buffer of a page has room for: here one more had.
		if k == 0 || n < unix.Getpagesize()-networkLine {
			break
		}
	}
	in, out = parseNetwork(buf[:n])
	return in, out, nil
}
