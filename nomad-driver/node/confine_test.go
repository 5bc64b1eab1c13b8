package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// strained is a sandbox whose work is played.
type strained struct {
	*fakeInstance
	charged uint64
	kernel  uint64 // nanoseconds
	cores   []int
	err     error // of Confine
	gone    bool
}

func (s *strained) Charged() (uint64, error) {
	if s.gone {
		return 0, cgroup.ErrNotExist
	}
	return s.charged, nil
}

func (s *strained) KernelNanos() (uint64, error) { return s.kernel, nil }
func (s *strained) Confined() ([]int, error)     { return s.cores, nil }

func (s *strained) Confine(cores []int) error {
	if s.err == nil {
		s.cores = cores
	}
	return s.err
}

// strainedWorld is a machine whose time a test makes pass.
type strainedWorld struct {
	c       *confiner
	now     time.Time
	tenants []tenant
	notes   []string
}

func newStrainedWorld(cores ...int) *strainedWorld {
	w := &strainedWorld{now: time.Unix(1000, 0)}
	w.c = newConfiner(hclog.NewNullLogger(), cores, func(b *box, message string, _ map[string]string) {
		w.notes = append(w.notes, string(b.id)+" "+message)
	})
	return w
}

const strainedLimit = 256 << 20

func (w *strainedWorld) add(cpuMillis int64, memory uint64) *strained {
	inst := &strained{fakeInstance: &fakeInstance{}, charged: memory}
	id := api.SandboxID(fmt.Sprint("s", len(w.tenants)))
	w.tenants = append(w.tenants, tenant{newBox(record{Sandbox: nodeapi.Sandbox{ID: id}}), inst, nodeapi.Limits{CPUMillis: cpuMillis, MemoryBytes: strainedLimit}, w.now})
	return inst
}

// work lets time pass in which each of the sandboxes works in the kernel on so much of a core, and nobody else does.
func (w *strainedWorld) work(d time.Duration, cores float64, who ...*strained) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(confineLook)
		for _, s := range who {
			s.kernel += uint64(cores * float64(confineLook))
		}
		w.c.look(w.tenants, len(who) > 0, w.now)
	}
}

func TestConfiner_keepsAStrainedSandboxOnItsQuotasCores(t *testing.T) {
	w := newStrainedWorld(0, 1, 2, 3)
	s := w.add(1500, strainedLimit*9/10)
	w.work(confineLook, 1, s)
	must.Eq(t, []int{2, 3}, s.cores)
	must.Eq(t, 1, w.c.confined())
	must.Len(t, 1, w.notes)
	w.work(time.Minute, .2, s) // confined, it can do less
	must.Eq(t, []int{2, 3}, s.cores)
	w.tenants[0].limits.CPUMillis = 500
	w.work(confineLook, 1, s)
	must.Eq(t, []int{3}, s.cores, must.Sprint("its quota is another now"))
	w.work(confineCalm-confineLook, 0)
	must.NotNil(t, s.cores)
	w.work(confineLook, 0)
	must.Nil(t, s.cores)
	must.MapEmpty(t, w.c.strains)
	w.work(confineLook, 0, s)
	w.work(confineLook, 1, s)
	must.Eq(t, []int{3}, s.cores)
	must.Len(t, 2, w.notes, must.Sprint("a minute has passed since the first"))
}

func TestConfiner_leavesAlone(t *testing.T) {
	for _, c := range []struct {
		name   string
		cores  []int
		millis int64
		memory uint64
		kernel float64
	}{
		{"who has room in memory", []int{0, 1}, 1000, strainedLimit / 5, 1},
		{"who has a full page cache and works elsewhere", []int{0, 1}, 1000, strainedLimit, .1},
		{"a machine with one core", []int{0}, 1000, strainedLimit, 1},
		{"a quota of all cores, not at its limit", []int{0, 1}, 2000, strainedLimit * 9 / 10, 2},
		{"a quota of all cores, at its limit, which also does its own work", []int{0, 1}, 2000, strainedLimit, .9},
		{"no quota", []int{0, 1}, 0, strainedLimit, .9},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newStrainedWorld(c.cores...)
			s := w.add(c.millis, c.memory)
			w.work(10*time.Second, c.kernel, s)
			must.Nil(t, s.cores)
			must.SliceEmpty(t, w.notes)
		})
	}
}

func TestConfiner_takesOneCoreFromWhoHasAll(t *testing.T) {
	for _, millis := range []int64{0, 3200, 4000, 64_000} {
		w := newStrainedWorld(0, 1, 2, 3)
		s := w.add(millis, strainedLimit)
		w.work(confineLook, 3, s)
		must.Eq(t, []int{1, 2, 3}, s.cores, must.Sprint(millis))
	}
}

func TestConfiner_spreadsByQuota(t *testing.T) {
	w := newStrainedWorld(0, 1, 2)
	big, small, third, fourth := w.add(2000, strainedLimit), w.add(100, strainedLimit), w.add(1000, strainedLimit), w.add(1000, strainedLimit)
	for _, s := range []*strained{big, small, third, fourth} {
		w.work(confineLook, .5, s)
	}
	must.Eq(t, []int{1, 2}, big.cores)
	must.Eq(t, []int{0}, small.cores)
	must.Eq(t, []int{0}, third.cores)
	must.Eq(t, []int{2}, fourth.cores) // 1000, 1000 and 1100 are there
}

func TestConfiner_readsOfLongAgoSayNothing(t *testing.T) {
	w := newStrainedWorld(0, 1)
	s := w.add(1000, strainedLimit)
	w.work(confineLook, .1, s) // a first reading
	s.kernel += uint64(time.Minute)
	w.now = w.now.Add(10 * time.Minute)
	w.work(confineLook, .1, s)
	must.Nil(t, s.cores)
	w.work(confineLook, .4, s)
	must.NotNil(t, s.cores)
}

func TestConfiner_goesOnWhereADaemonStopped(t *testing.T) {
	w := newStrainedWorld(0, 1)
	s, free := w.add(1000, strainedLimit), w.add(1000, strainedLimit)
	s.cores = []int{0}
	w.c.takeOver(w.tenants, w.now)
	must.Eq(t, 1, w.c.confined())
	w.work(confineCalm-confineLook, 0)
	must.Eq(t, []int{0}, s.cores)
	w.work(confineLook, 0)
	must.Nil(t, s.cores)
	must.Nil(t, free.cores)
}

func TestConfiner_forgetsWhoIsGone(t *testing.T) {
	w := newStrainedWorld(0, 1)
	a, b := w.add(1000, strainedLimit), w.add(1000, strainedLimit)
	w.work(confineLook, 1, a)
	must.Eq(t, []int{1}, a.cores)
	a.gone = true
	w.tenants = w.tenants[1:]
	w.work(confineLook, 1, b)
	w.work(confineLook, 1, b)
	must.Eq(t, []int{1}, b.cores, must.Sprint("the core of the other is free"))
}

func TestConfiner_whatCannotBeConfined(t *testing.T) {
	w := newStrainedWorld(0, 1)
	s := w.add(1000, strainedLimit)
	s.err = cgroup.ErrUnsupported
	w.work(time.Second, 1, s)
	s.err = nil
	w.work(time.Second, 1, s)
	must.Nil(t, s.cores, must.Sprint("it was made without the controller, and is not tried again"))
	must.SliceEmpty(t, w.notes)
}

func TestConfiner_coresComeAndGo(t *testing.T) {
	w := newStrainedWorld(0, 1)
	s := w.add(1000, strainedLimit)
	w.work(confineLook, 1, s)
	must.Eq(t, []int{1}, s.cores)
	w.c.setCores([]int{0, 1, 2, 3}, w.tenants)
	must.Nil(t, s.cores)
	w.work(2*confineLook, 1, s)
	must.Eq(t, []int{3}, s.cores)
}
