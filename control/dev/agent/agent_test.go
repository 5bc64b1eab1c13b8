package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent"
	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
)

func TestAgents_startServeAndLeaveNothing(t *testing.T) {
	type running struct {
		stop func(context.Context) error
		url  string
		pids []int
	}
	tests := []struct {
		name  string
		start func(t *testing.T) (running, error)
	}{
		{"consul", func(t *testing.T) (running, error) {
			c, err := agent.StartConsul(t.Context(), agent.ConsulConfig{Binary: agenttest.Binary(t, "consul"), Dir: t.TempDir()})
			if err != nil {
				return running{}, err
			}
			return running{c.Stop, c.Config.Address(), []int{c.PID()}}, nil
		}},
		{"vault", func(t *testing.T) (running, error) {
			v, err := agent.StartVault(t.Context(), agent.VaultConfig{Binary: agenttest.Binary(t, "vault"), Dir: t.TempDir()})
			if err != nil {
				return running{}, err
			}
			return running{v.Stop, v.Config.Address(), []int{v.PID()}}, nil
		}},
		{"nomad", func(t *testing.T) (running, error) {
			n, err := agent.StartNomad(t.Context(), agent.NomadConfig{Binary: agenttest.Binary(t, "nomad"), Dir: t.TempDir()})
			if err != nil {
				return running{}, err
			}
			return running{n.Stop, n.Config.Address(), []int{n.Server.PID(), n.Client.PID()}}, nil
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			r, err := tc.start(t)
			must.NoError(t, err)
			t.Logf("ready after %s", time.Since(begin))
			host := strings.TrimPrefix(r.url, "http://")
			conn, err := net.Dial("tcp", host)
			must.NoError(t, err)
			must.NoError(t, conn.Close())

			begin = time.Now()
			must.NoError(t, r.stop(context.Background()))
			t.Logf("ended after %s", time.Since(begin))
			for _, pid := range r.pids {
				must.ErrorIs(t, syscall.Kill(-pid, 0), syscall.ESRCH)
			}
			_, err = net.Dial("tcp", host)
			must.ErrorIs(t, err, syscall.ECONNREFUSED)
		})
	}
}

// Vault takes a port that no configuration names. One that was given to somebody else would end one of the two.
func TestVault_hasTheNextPortToo(t *testing.T) {
	v := agenttest.Vault(t, agent.VaultConfig{})
	conn, err := net.Dial("tcp", agent.Address(v.Config.HTTP+1))
	must.NoError(t, err)
	must.NoError(t, conn.Close())
	ports, err := agent.FreePorts(50)
	must.NoError(t, err)
	must.SliceNotContains(t, ports, v.Config.HTTP+1)
}

func TestNomad_keepsItsNodeID(t *testing.T) {
	dir := t.TempDir()
	const id = "0f0f0f0f-1111-2222-3333-444444444444"
	before, err := agent.ReadNodeID(dir)
	must.NoError(t, err)
	must.Eq(t, "", before)
	agenttest.Nomad(t, agent.NomadConfig{Dir: dir, NodeID: id})
	after, err := agent.ReadNodeID(dir)
	must.NoError(t, err)
	must.Eq(t, id, after)
}

func shell(t *testing.T, script string) agent.Spec {
	dir := t.TempDir()
	return agent.Spec{
		Name: "script", Path: "/bin/sh", Args: []string{"-c", script}, Dir: dir, Log: filepath.Join(dir, "log"),
		Grace: 200 * time.Millisecond,
	}
}

func TestStart_failsWithTheLogOfAProcessThatEnds(t *testing.T) {
	spec := shell(t, "echo the reason >&2; exit 3")
	spec.Ready = func(context.Context) error { return errors.New("not yet") }
	_, err := agent.Start(t.Context(), spec)
	must.ErrorContains(t, err, "the reason")
	must.ErrorContains(t, err, "exit status 3")
}

func TestStart_endsWhatIsNotReadyInTime(t *testing.T) {
	spec := shell(t, "echo $$; exec sleep 100")
	spec.ReadyTimeout = 100 * time.Millisecond
	spec.Ready = func(context.Context) error { return errors.New("not yet") }
	_, err := agent.Start(t.Context(), spec)
	must.ErrorIs(t, err, context.DeadlineExceeded)
	must.ErrorContains(t, err, "not yet")
}

func TestStop_killsTheGroupOfAProcessThatIgnoresIt(t *testing.T) {
	spec := shell(t, "trap '' INT; sleep 100 & echo ready; while :; do wait; done")
	spec.Ready = func(context.Context) error {
		data, err := os.ReadFile(spec.Log)
		if err != nil || !strings.Contains(string(data), "ready") {
			return errors.Join(err, errors.New("not ready"))
		}
		return nil
	}
	p, err := agent.Start(t.Context(), spec)
	must.NoError(t, err)
	must.ErrorContains(t, p.Stop(context.Background()), "was killed")
	agenttest.Eventually(t, 5*time.Second, func() error {
		if err := syscall.Kill(-p.PID(), 0); !errors.Is(err, syscall.ESRCH) {
			return errors.New("its group is still there")
		}
		return nil
	})
	must.NoError(t, p.Stop(context.Background()), must.Sprint("a second stop"))
	must.ErrorIs(t, p.Signal(syscall.SIGTERM), os.ErrProcessDone)
}

func TestProcess_doesNotSeeVariablesThatConfigureAgents(t *testing.T) {
	t.Setenv("NOMAD_ADDR", "http://elsewhere")
	t.Setenv("AWS_CA_BUNDLE", "/ca.pem")
	spec := shell(t, "env")
	p, err := agent.Start(t.Context(), spec)
	must.NoError(t, err)
	<-p.Done()
	data, err := os.ReadFile(spec.Log)
	must.NoError(t, err)
	must.StrContains(t, string(data), "PATH=")
	must.StrNotContains(t, string(data), "NOMAD_")
	must.StrNotContains(t, string(data), "AWS_")
}

// TestMain is also the program that TestProcess_diesWithItsParent kills.
func TestMain(m *testing.M) {
	dir := os.Getenv("AGENT_TEST_PARENT")
	if dir == "" {
		os.Exit(m.Run())
	}
	p, err := agent.Start(context.Background(), agent.Spec{
		Name: "child", Path: "/bin/sleep", Args: []string{"600"}, Dir: dir, Log: filepath.Join(dir, "log"),
	})
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(strconv.Itoa(p.PID())), 0o600); err != nil {
		panic(err)
	}
	select {}
}

func TestProcess_diesWithItsParent(t *testing.T) {
	dir := t.TempDir()
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), "AGENT_TEST_PARENT="+dir)
	must.NoError(t, parent.Start())
	child := 0
	agenttest.Eventually(t, 10*time.Second, func() error {
		data, err := os.ReadFile(filepath.Join(dir, "pid"))
		if err == nil {
			child, err = strconv.Atoi(string(data))
		}
		return err
	})
	must.NoError(t, syscall.Kill(child, 0))
	must.NoError(t, parent.Process.Kill())
	_ = parent.Wait()
	agenttest.Eventually(t, 10*time.Second, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return errors.New("it runs on")
		}
		return nil
	})
}
