package node

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/networktest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// serveEcho answers each line with itself, at an address of a namespace.
func serveEcho(t *testing.T, ns *os.File, address string) {
	t.Helper()
	networktest.ServeStreams(t, ns, address, func(c net.Conn) {
		for s := bufio.NewScanner(c); s.Scan(); {
			if _, err := fmt.Fprintln(c, s.Text()); err != nil {
				return
			}
		}
	})
}

// deadScript tries, round after round, what needs nobody, what needs the resolver or the proxy, and what is denied (its $0), and writes down what came of
// each. It needs no daemon itself.
const deadScript = `
exec 3<>/dev/tcp/www.example.com/8080
for i in $(seq 2000); do
	flow=broken; echo $i >&3 && read -t 20 line <&3 && [ "$line" = $i ] && flow=flows
	pinned=shut; (exec 5<>/dev/tcp/198.51.100.1/8080) 2>/dev/null && pinned=open
	denied=shut; (exec 5<>/dev/tcp/$0/8080) 2>/dev/null && denied=open
	name=unknown; (exec 5<>/dev/tcp/other.example.com/8080) 2>/dev/null && name=known
	web=refused; (exec 5<>/dev/tcp/198.51.100.1/80; printf 'GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n' >&5; read -t 20 line <&5; [[ $line = *200* ]]) 2>/dev/null && web=answered
	echo $i $flow $pinned $denied $name $web >> ~/rounds
done
`

// The daemon is the resolver and the proxy as well. While it is dead, what the kernel carries goes on, and nothing opens that was shut; what needs
// it fails, instead of going where it may not.
func TestRealNetwork_failsClosedWhileTheDaemonIsDead(t *testing.T) {
	w := networktest.New(t)
	networktest.ServeNames(t, w.Outside, networktest.OutsideAddr+":53",
		"www.example.com. 600 IN A 198.51.100.1", "other.example.com. 0 IN A 198.51.100.2")
	for _, a := range []string{"198.51.100.1", "198.51.100.2", networktest.OutsideAddr} {
		serveEcho(t, w.Outside, a+":8080")
	}
	networktest.ServeWeb(t, w.Outside, "198.51.100.1:80", nil)
	d := startDaemonIn(t, w.Host, "-network", "on", "-config", configFile(t, `network { resolvers = ["`+networktest.OutsideAddr+`"] }`))
	sb := d.create(func(r *nodeapi.CreateRequest) {
		r.Network = allowing("*.example.com")
		r.Main = &guest.Start{Argv: []string{"bash", "-c", deadScript, networktest.OutsideAddr}}
	})
	rounds := func() []string {
		found, err := filepath.Glob(filepath.Join(d.dir, "s/sandboxes", string(sb.ID), "upper/home/user/rounds"))
		must.NoError(t, err)
		if len(found) == 0 {
			return nil
		}
		b, err := os.ReadFile(found[0])
		must.NoError(t, err)
		lines := strings.Split(string(b), "\n")
		return lines[:len(lines)-1] // the last one may be half there
	}
	// follow returns two rounds that began from now on.
	follow := func() (seen []string) {
		first := len(rounds()) + 1 // that which runs now has begun before
		waitUntil(t, "rounds of the sandbox", func() bool { return len(rounds()) >= first+2 })
		for _, line := range rounds()[first : first+2] {
			_, what, _ := strings.Cut(line, " ")
			seen = append(seen, what)
		}
		return seen
	}
	const alive, dead = "flows open shut known answered", "flows open shut unknown refused"
	must.Eq(t, []string{alive, alive}, follow())
	d.kill()
	must.Eq(t, []string{dead, dead}, follow())
	d.start()
	must.Eq(t, []string{alive, alive}, follow())
}
