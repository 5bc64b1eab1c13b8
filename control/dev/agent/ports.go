package agent

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Loopback is the address that every agent binds.
const Loopback = "127.0.0.1"

// The ports that FreePorts gives. They lie below those that the kernel takes for outgoing connections (ip_local_port_range), where
// any connection of any program may take one between the moment it is given and the moment it is used.
const (
	firstPort = 10000
	lastPort  = 19999
)

// given is where the search for the next free port goes on. It begins anywhere, so that two processes at the same time look at different
// ports, and comes back to a port only after all others.
var given struct {
	mu   sync.Mutex
	next int // 0: not yet begun
}

// FreePorts returns n ports of loopback that nobody listens on, for TCP and UDP both, and that it has given to no other caller in this
// process. They are not reserved: another process may take one before it is used.
func FreePorts(n int) ([]int, error) {
	given.mu.Lock()
	defer given.mu.Unlock()
	if given.next == 0 {
		given.next = firstPort + rand.IntN(lastPort-firstPort+1)
	}
	var out []int
	var last error
	for range lastPort - firstPort + 1 {
		if len(out) == n {
			return out, nil
		}
		port := given.next
		if given.next++; given.next > lastPort {
			given.next = firstPort
		}
		if err := try(port); err != nil {
			last = err
			continue
		}
		out = append(out, port)
	}
	if len(out) == n {
		return out, nil
	}
	return nil, fmt.Errorf("find %d free ports from %d to %d: %w", n, firstPort, lastPort, last)
}

// freePair returns the first of two free ports that follow each other.
func freePair() (int, error) {
	for range lastPort - firstPort {
		two, err := FreePorts(2)
		if err != nil {
			return 0, err
		}
		if two[1] == two[0]+1 {
			return two[0], nil
		}
	}
	return 0, errors.New("find two free ports that follow each other: there are none")
}

// try reports why a port cannot be listened on.
func try(port int) error {
	l, err := net.Listen("tcp", Address(port))
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", Address(port))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return errors.Join(u.Close(), l.Close())
}

// Address returns "127.0.0.1:port".
func Address(port int) string { return net.JoinHostPort(Loopback, strconv.Itoa(port)) }

// fill replaces the ports that are 0 by free ones.
func fill(ports ...*int) error {
	var missing []*int
	for _, p := range ports {
		if *p == 0 {
			missing = append(missing, p)
		}
	}
	free, err := FreePorts(len(missing))
	if err != nil {
		return err
	}
	for i, p := range missing {
		*p = free[i]
	}
	return nil
}
