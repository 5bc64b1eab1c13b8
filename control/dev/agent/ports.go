package agent

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Loopback is the address that every agent binds.
const Loopback = "127.0.0.1"

// FreePorts returns n ports of loopback that nobody listens on, for TCP and UDP both. They are not reserved: another
// process may take one before it is used.
func FreePorts(n int) ([]int, error) {
	var closers []func() error
	defer func() {
		for _, c := range closers {
			_ = c()
		}
	}()
	var out []int
	for tries := 0; len(out) < n; tries++ {
		l, err := net.Listen("tcp", Loopback+":0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		closers = append(closers, l.Close)
		addr, ok := l.Addr().(*net.TCPAddr)
		if !ok {
			return nil, errors.New("find a free port: no TCP address")
		}
		u, err := net.ListenPacket("udp", Address(addr.Port))
		if err != nil {
			if tries > 10*n+100 {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
			continue
		}
		closers = append(closers, u.Close)
		out = append(out, addr.Port)
	}
	return out, nil
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
