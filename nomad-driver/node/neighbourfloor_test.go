package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
)

// plainGround is where the same attacks are waged without SoulBox: an attacker and a neighbour, each in a control group with the limits of
// the sandboxes and nothing else. What the neighbour feels there is the kernel's and the machine's, and no sandbox can feel less.
type plainGround struct {
	groups *cgroup.Tree
	home   string // the attackers', with the bomb in it
}

// plainUser is the attackers' user: somebody with rights to nothing.
const plainUser = 1 << 21

func newPlainGround(b *testing.B, bomb []byte) *plainGround {
	b.Helper()
	dir := shortDir(b)
	must.NoError(b, os.Chmod(dir, 0o755))
	groups, err := cgroup.Detect("/sys/fs/cgroup", "soulbox-test-plain-"+filepath.Base(dir))
	must.NoError(b, err)
	b.Cleanup(func() { must.NoError(b, groups.Close()) })
	g := &plainGround{groups: groups, home: filepath.Join(dir, "home")}
	must.NoError(b, os.Mkdir(g.home, 0o755))
	must.NoError(b, os.WriteFile(filepath.Join(g.home, "bomb"), bomb, 0o755))
	must.NoError(b, os.Chown(g.home, plainUser, plainUser))
	return g
}

// start starts a shell script in a new group, as a session leader. It is killed with the whole group by end.
func (g *plainGround) start(b *testing.B, name, script string, user uint32, pipes func(*exec.Cmd)) (end func()) {
	b.Helper()
	group, err := g.groups.Create(name, cgroup.Limits{
		CPUMillis: neighbourLimits.CPUMillis, CPUWeight: 100, MemoryBytes: neighbourLimits.MemoryBytes, PIDs: neighbourLimits.PIDs,
	})
	must.NoError(b, err)
	// It waits until it is in the group.
	cmd := exec.Command("/bin/bash", "-c", "read go <&3; exec 3<&-; exec setpriv --reuid "+fmt.Sprint(user)+" --regid "+fmt.Sprint(user)+" --clear-groups --no-new-privs /bin/bash -c "+quoted(script))
	cmd.Dir, cmd.Env = g.home, []string{"HOME=" + g.home, "PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	ready, begin, err := os.Pipe()
	must.NoError(b, err)
	cmd.ExtraFiles = []*os.File{ready}
	if pipes != nil {
		pipes(cmd)
	}
	must.NoError(b, cmd.Start())
	must.NoError(b, ready.Close())
	must.NoError(b, group.Join(cmd.Process.Pid))
	_, err = io.WriteString(begin, "go\n")
	must.NoError(b, err)
	must.NoError(b, begin.Close())
	waited := make(chan struct{})
	go func() { defer close(waited); _ = cmd.Wait() }() // how it ends is no matter
	return func() {
		must.NoError(b, group.Kill(context.Background()))
		<-waited
		must.NoError(b, group.Remove(context.Background()))
	}
}

func quoted(script string) string { return "'" + strings.ReplaceAll(script, "'", `'\''`) + "'" }

// measure wages an attack there and returns how long the starts of /bin/true by a neighbour took without and under it.
func (g *plainGround) measure(b *testing.B, a attack) (idle, attacked []time.Duration) {
	b.Helper()
	var in io.WriteCloser
	var out *bufio.Reader
	endNeighbour := g.start(b, "neighbour", "while read line; do /bin/true; echo done; done", 0, func(cmd *exec.Cmd) {
		var err error
		in, err = cmd.StdinPipe()
		must.NoError(b, err)
		pipe, err := cmd.StdoutPipe()
		must.NoError(b, err)
		out = bufio.NewReader(pipe)
	})
	defer endNeighbour()
	rhythm := neighbourRhythm
	starts := func(n int) (took []time.Duration) {
		tick := time.NewTicker(rhythm)
		defer tick.Stop()
		for range n {
			<-tick.C
			begin := time.Now()
			_, err := io.WriteString(in, "go\n")
			must.NoError(b, err)
			_, err = out.ReadString('\n')
			must.NoError(b, err)
			took = append(took, time.Since(begin))
		}
		return took
	}
	first := starts(20)
	slices.Sort(first)
	rhythm = max(rhythm, neighbourPause*first[len(first)/2])
	idle = starts(neighbourExecs / 2)
	end := g.start(b, "attacker", "while :; do "+a.script+"; done", plainUser, nil) // what ends for lack of memory begins again
	time.Sleep(2 * time.Second)                                                     // as long as the real one takes to be under way
	attacked = starts(neighbourExecs)
	end()
	return append(idle, starts(neighbourExecs/2)...), attacked
}
