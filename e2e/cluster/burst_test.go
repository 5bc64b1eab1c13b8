package cluster

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

var (
	burst    = flag.Int("burst", 60, "creates at once of TestBurst")
	pictures = flag.String("pictures", "", "folder that TestBurst puts pictures of the UIs into; empty: none")
)

// atOnce is how many clients there are: each ends what it has made before it makes the next.
const atOnce = 40

// one is a create of the burst.
type one struct {
	id   api.SandboxID
	took time.Duration
	warm bool
}

// TestBurst asks much more of a pool than is in it: everybody gets a sandbox of his own, and Nomad, Consul and the service agree about what there is.
func TestBurst(t *testing.T) {
	const size = 20
	s := start(t).serve(t)
	_, err := s.client.CreatePool(t.Context(), api.NewPool{Name: "burst", PoolSpec: api.PoolSpec{
		Template: new("base"), Min: new(size), CPUMillis: new(int64(50)), MemoryMB: new(int64(32)),
	}})
	must.NoError(t, err)
	full := func() error {
		p, err := s.client.Pool(t.Context(), "burst")
		if err == nil && p.Status.Ready < size {
			err = fmt.Errorf("%+v", p.Status)
		}
		return err
	}
	s.until(t, "the pool to be full", full)
	s.picture(t, "pool-consul", s.ConsulAddress()+"/ui/dc1/services/soulbox-node/instances", "soulbox-node")
	s.picture(t, "pool-nomad", s.NomadConfig().Address+"/ui/jobs?pageSize=25", "soulbox")
	s.picture(t, "pool-nomad-topology", s.NomadConfig().Address+"/ui/topology", "Allocations")

	begin := time.Now()
	made := s.burst(t)
	all := time.Since(begin)
	ids := map[api.SandboxID]bool{}
	var warm, cold []time.Duration
	for _, m := range made {
		must.False(t, ids[m.id], must.Sprint("given twice: ", m.id))
		ids[m.id] = true
		if m.warm {
			warm = append(warm, m.took)
		} else {
			cold = append(cold, m.took)
		}
	}
	must.Len(t, *burst, made)
	must.GreaterEq(t, size, len(warm), must.Sprint("all slots were used"))
	t.Logf("%d creates by %d clients in %s (%.0f a second, each with its end)\nhits:\n%s\nmisses:\n%s",
		len(made), atOnce, all.Round(time.Millisecond), float64(len(made))/all.Seconds(), histogram(warm), histogram(cold))
	s.until(t, "the pool to count as its clients did", func() error {
		p, err := s.client.Pool(t.Context(), "burst")
		if err == nil && (p.Status.Hits != uint64(len(warm)) || p.Status.Misses != uint64(len(cold))) {
			err = fmt.Errorf("%+v, %d hits and %d misses were answered", p.Status, len(warm), len(cold))
		}
		return err
	})
	s.until(t, "the pool to be full again", full)
	s.until(t, "Nomad to have the slots and nothing else", func() error { return s.nomadHas(t, size) })
	must.NoError(t, s.consulPasses(t))
	must.NoError(t, s.client.DeletePool(t.Context(), "burst"))
	s.until(t, "Nomad to have nothing", func() error { return s.nomadHas(t, 0) })
}

// burst makes them all, and ends each.
func (s *service) burst(t *testing.T) (made []one) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	todo := make(chan struct{}, *burst)
	for range *burst {
		todo <- struct{}{}
	}
	close(todo)
	for range atOnce {
		wg.Go(func() {
			for range todo {
				begin := time.Now()
				sb, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{
					Template: "base", Timeout: new(int64(600)), CreateOptions: api.CreateOptions{CPUMillis: new(int64(50)), MemoryMB: new(int64(32))},
				})
				took := time.Since(begin)
				if err == nil {
					err = s.client.DeleteSandbox(t.Context(), sb.ID)
				}
				mu.Lock()
				if err != nil {
					t.Error(err)
				} else {
					made = append(made, one{sb.ID, took, sb.Warm})
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return made
}

// histogram shows times, each line twice as long as the one before.
func histogram(d []time.Duration) string {
	if len(d) == 0 {
		return "  none"
	}
	slices.Sort(d)
	var b strings.Builder
	fmt.Fprintf(&b, "  %d, p50 %s, p99 %s, slowest %s", len(d), d[len(d)/2].Round(time.Microsecond*100), d[len(d)*99/100].Round(time.Microsecond*100), d[len(d)-1].Round(time.Microsecond*100))
	for i, limit := 0, time.Millisecond; i < len(d); limit *= 2 {
		n := i
		for i < len(d) && d[i] < limit {
			i++
		}
		if i > n {
			fmt.Fprintf(&b, "\n  < %-6s %4d %s", limit, i-n, strings.Repeat("#", max(1, (i-n)*60/len(d))))
		}
	}
	return b.String()
}

// nomadHas compares what runs by Nomad's word.
func (s *service) nomadHas(t *testing.T, want int) error {
	c, err := nomadapi.NewClient(&nomadapi.Config{Address: s.NomadConfig().Address})
	if err != nil {
		return err
	}
	defer c.Close()
	list, _, err := c.Allocations().List((&nomadapi.QueryOptions{}).WithContext(t.Context()))
	running := 0
	for _, a := range list {
		if a.ClientStatus == nomadapi.AllocClientStatusRunning && a.DesiredStatus == nomadapi.AllocDesiredStatusRun {
			running++
		}
	}
	if err == nil && running != want {
		err = fmt.Errorf("%d allocations run, not %d", running, want)
	}
	return err
}

// consulPasses reports what of the node's checks does not pass, by Consul's word.
func (s *service) consulPasses(t *testing.T) error {
	var entries []struct {
		Checks []struct{ Name, Status, Output string }
	}
	err := getJSON(t.Context(), s.ConsulAddress()+"/v1/health/service/soulbox-node", &entries)
	if err != nil {
		return err
	}
	if len(entries) != 1 || len(entries[0].Checks) < 7 {
		return fmt.Errorf("%+v", entries)
	}
	for _, c := range entries[0].Checks {
		t.Logf("consul: %-12s %-8s %s", c.Name, c.Status, c.Output)
		if c.Status == "critical" {
			err = fmt.Errorf("%s: %s", c.Name, c.Output)
		}
	}
	return err
}

func getJSON(ctx context.Context, url string, to any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(to)
}
