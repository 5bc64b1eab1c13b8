package agent_test

import (
	"net"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent"
)

func TestFreePorts_givesNoneTwiceAndNoneThatIsInUse(t *testing.T) {
	first, err := agent.FreePorts(2)
	must.NoError(t, err)
	// The ones that come next, as far as nobody has them.
	var used []int
	for port := first[1] + 1; port < first[1]+20; port++ {
		if l, err := net.Listen("tcp", agent.Address(port)); err == nil {
			defer l.Close()
			used = append(used, port)
		} else if u, err := net.ListenPacket("udp", agent.Address(port)); err == nil {
			defer u.Close()
			used = append(used, port)
		}
	}
	var mu sync.Mutex
	seen := map[int]bool{}
	for _, port := range append(first, used...) {
		seen[port] = true
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ports, err := agent.FreePorts(20)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
				return
			}
			for _, port := range ports {
				if seen[port] {
					t.Errorf("port %d is in use, or was given before", port)
				}
				seen[port] = true
			}
		})
	}
	wg.Wait()
	must.MapLen(t, 2+len(used)+8*20, seen)
}
