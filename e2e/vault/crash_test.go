package vault

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/dev/agent/agenttest"
	"github.com/soulbox-dev/soulbox/control/keys/vault"
)

// holding is a proxy in front of a control server that keeps the answers to POST to itself, once told to, until release is closed.
type holding struct {
	address string
	hold    chan struct{} // one value: hold the next answer
	made    chan struct{} // closed when an answer is held: what was asked for is done
	release chan struct{}
}

func hold(t *testing.T, target string) *holding {
	t.Helper()
	u, err := url.Parse(target)
	must.NoError(t, err)
	h := &holding{hold: make(chan struct{}, 1), made: make(chan struct{}), release: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method != http.MethodPost {
			return nil
		}
		select {
		case <-h.hold:
			close(h.made)
			<-h.release
		default:
		}
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	srv := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	h.address = "http://" + l.Addr().String()
	return h
}

// pluginProcess returns the process of this test's plugin.
func (s *stand) pluginProcess() (int, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.TrimSuffix(target, " (deleted)") == s.plugin {
			return strconv.Atoi(filepath.Base(filepath.Dir(link)))
		}
	}
	return 0, fmt.Errorf("no process of %s", s.plugin)
}

func TestEngine_killedWhileItMakesAKeyTakesTheKeyBack(t *testing.T) {
	if testing.Short() {
		t.Skip("Vault looks at its write-ahead logs once a minute")
	}
	s := startVaultWith(t, "-X github.com/soulbox-dev/soulbox/vault-plugin.walMinAge=1s")
	c := startControl(t, nil)
	h := hold(t, c.Address())
	enabled(t, s, h.address, c.key)
	count := func() int {
		list, err := c.client.Keys(t.Context())
		must.NoError(t, err)
		n := 0
		for _, k := range list {
			if strings.HasPrefix(k.Name, "vault-dev-") {
				n++
			}
		}
		return n
	}
	h.hold <- struct{}{}
	answered := make(chan int, 1) // keys that somebody was given
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := s.client()
	go func() {
		// Vault may ask a new process when the one that it asked has died: then there is a second key, which is the caller's.
		secret, err := client.Logical().ReadWithContext(ctx, "soulbox/creds/dev")
		if err == nil && secret != nil {
			answered <- 1
			return
		}
		answered <- 0
	}()
	<-h.made
	must.Eq(t, 1, count(), must.Sprint("the key is made, and nobody has it"))
	pid, err := s.pluginProcess()
	must.NoError(t, err)
	must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	close(h.release)
	given := <-answered
	begin := time.Now()
	agenttest.Eventually(t, 3*time.Minute, func() error {
		if n := count(); n != given {
			return fmt.Errorf("%d keys are there, %d of them with a lease", n, given)
		}
		return nil
	})
	t.Logf("the key was taken back %s after the plugin was killed", time.Since(begin).Round(time.Second))
	data, lease := s.data("read", "soulbox/creds/dev")
	key, _ := data["api_key"].(string)
	must.Eq(t, http.StatusOK, c.status(key), must.Sprint("a new process serves"))
	s.ok("lease", "revoke", "-sync", lease)
}

// slow is a TCP proxy that lets nothing through before a delay.
func slow(t *testing.T, target string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				select {
				case <-time.After(delay):
				case <-ctx.Done():
					return
				}
				up, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer up.Close()
				finished := make(chan struct{}, 2)
				pipe := func(to, from net.Conn) {
					buf := make([]byte, 32<<10)
					for {
						n, err := from.Read(buf)
						if n > 0 {
							if _, werr := to.Write(buf[:n]); werr != nil {
								break
							}
						}
						if err != nil {
							break
						}
					}
					finished <- struct{}{}
				}
				go pipe(up, conn)
				go pipe(conn, up)
				select {
				case <-finished:
				case <-ctx.Done():
				}
			}()
		}
	}()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		<-done
	})
	return "http://" + l.Addr().String()
}

func TestRing_ofASlowVaultFailsSoonAndIsAskedLess(t *testing.T) {
	s := startVault(t)
	must.NoError(t, s.keys().PrepareKey(t.Context(), "soulbox/url-keys/links", vault.UseRing))
	address := slow(t, strings.TrimPrefix(s.Config.Address(), "http://"), 5*time.Second)
	c, err := vault.Connect(vault.Config{Address: address, Token: s.Config.RootToken})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	begin := time.Now()
	for range 4 {
		_, err = c.OpenRing(t.Context(), vault.RingConfig{Key: "soulbox/url-keys/links"})
		must.Error(t, err)
	}
	must.ErrorContains(t, err, "has not answered 3 times")
	t.Logf("four calls failed after %s in all", time.Since(begin).Round(time.Millisecond))
	must.Less(t, 5*time.Second, time.Since(begin), must.Sprint("nobody has waited for an answer"))
}
