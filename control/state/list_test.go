package state

import (
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

// listing has sandboxes 1 to 20: those divisible by 5 have ended, those by 3 are starting, the others run.
func listing(t testing.TB) *fsm {
	var log []Command
	for n := 1; n <= 20; n++ {
		s := starting(n)
		if n%2 == 0 {
			s.Template = "even"
		}
		log = append(log, &SandboxCreate{Sandbox: s})
		switch {
		case n%5 == 0:
			log = append(log, &SandboxEnd{Ends: []End{{ID: id(n), State: Stopped, At: at(n + 1)}}})
		case n%3 != 0:
			log = append(log, &SandboxRunning{ID: id(n), Node: "n", StartedAt: at(n + 1)})
		}
	}
	foreign := starting(50)
	foreign.Tenant = "default2" // a name that the first one is a prefix of
	return replay(t, append(log, &SandboxCreate{Sandbox: foreign}))
}

func numbers(l []Sandbox) []int {
	out := []int{}
	for _, s := range l {
		n := 0
		for _, c := range string(s.ID)[1:] {
			n = n*10 + int(c-'0')
		}
		out = append(out, n)
	}
	return out
}

func TestList_filtersAndOrders(t *testing.T) {
	f := listing(t)
	live := []int{1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19}
	for _, c := range []struct {
		name    string
		filter  Filter
		want    []int
		running int
	}{
		{"live by default", Filter{}, live, 11},
		{"running", Filter{States: []SandboxState{Running}}, []int{1, 2, 4, 7, 8, 11, 13, 14, 16, 17, 19}, 11},
		{"ended", Filter{States: []SandboxState{Stopped, Failed}}, []int{5, 10, 15, 20}, 11},
		{"ended and starting", Filter{States: []SandboxState{Stopped, Starting}}, []int{3, 5, 6, 9, 10, 12, 15, 18, 20}, 11},
		{"metadata", Filter{Metadata: map[string]string{"parity": "0"}}, []int{2, 4, 6, 8, 12, 14, 16, 18}, 5},
		{"all pairs", Filter{Metadata: map[string]string{"parity": "0", "n": "4"}}, []int{4}, 1},
		{"pairs that never meet", Filter{Metadata: map[string]string{"parity": "1", "n": "4"}}, []int{}, 0},
		{"missing key is not empty", Filter{Metadata: map[string]string{"x": ""}}, []int{}, 0},
		{"template", Filter{Template: "even", States: []SandboxState{Running}}, []int{2, 4, 8, 14, 16}, 5},
		{"digest", Filter{Template: "sha256:abc", States: []SandboxState{Starting}}, []int{3, 6, 9, 12, 18}, 11},
		{"template with tenant and tag", Filter{Template: DefaultTenant + "/even:default", States: []SandboxState{Running}}, []int{2, 4, 8, 14, 16}, 5},
		{"template with another tag", Filter{Template: "even:v2", States: []SandboxState{Running}}, []int{}, 0},
		{"started at or after", Filter{StartedAfter: at(17)}, []int{16, 17, 18, 19}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.filter.Tenant = DefaultTenant
			l, err := f.store.List(c.filter, Ascending, Page{})
			must.NoError(t, err)
			must.Eq(t, c.want, numbers(l.Sandboxes))
			must.Eq(t, c.running, l.TotalRunning)
			must.Eq(t, "", l.NextToken)
			l, err = f.store.List(c.filter, Descending, Page{})
			must.NoError(t, err)
			slices.Reverse(c.want)
			must.Eq(t, c.want, numbers(l.Sandboxes))
		})
	}
}

func TestList_pagesAreStableUnderChanges(t *testing.T) {
	for _, order := range []Order{Ascending, Descending} {
		for limit := 1; limit <= 7; limit++ {
			f := listing(t)
			seen := map[int]int{}
			page, extra := Page{Limit: limit}, 100
			for {
				l, err := f.store.List(Filter{Tenant: DefaultTenant}, order, page)
				must.NoError(t, err)
				must.LessEq(t, limit, len(l.Sandboxes))
				for _, n := range numbers(l.Sandboxes) {
					seen[n]++
				}
				if l.NextToken == "" {
					break
				}
				page.Token = l.NextToken
				// Meanwhile the last one seen ends, another one far away too, and new ones come.
				last := l.Sandboxes[len(l.Sandboxes)-1].ID
				_, err = f.store.apply(uint64(extra), &SandboxEnd{Ends: []End{{ID: last, State: Stopped, At: at(9)}}})
				must.NoError(t, err)
				_, err = f.store.apply(uint64(extra+1), &SandboxCreate{Sandbox: starting(extra)})
				must.NoError(t, err)
				extra++
				must.Less(t, 300, extra, must.Sprint("paging ends"))
				if order == Ascending && extra > 120 {
					break // ascending lists see new ones for as long as they come
				}
			}
			for _, n := range []int{1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19} {
				must.Eq(t, 1, seen[n], must.Sprint(order, limit, n))
			}
		}
	}
}

func TestList_refusesBadPages(t *testing.T) {
	f := listing(t)
	filter := Filter{Tenant: DefaultTenant}
	l, err := f.store.List(filter, Ascending, Page{Limit: 1})
	must.NoError(t, err)
	for name, token := range map[string]string{
		"garbage": "!!!", "short": "AQ", "other version": "Am" + l.NextToken[2:], "cut": l.NextToken[:len(l.NextToken)-4],
	} {
		_, err := f.store.List(filter, Ascending, Page{Token: token})
		must.ErrorIs(t, err, ErrToken, must.Sprint(name))
	}
	_, err = f.store.List(filter, Descending, Page{Token: l.NextToken})
	must.ErrorIs(t, err, ErrToken, must.Sprint("a token of the other order"))
	for _, limit := range []int{-1, MaxPage + 1} {
		_, err = f.store.List(filter, Ascending, Page{Limit: limit})
		must.ErrorContains(t, err, "limit")
	}
	_, err = f.store.List(filter, "sideways", Page{})
	must.ErrorContains(t, err, "order")
}

func FuzzToken(f *testing.F) {
	f.Add(makeToken(Ascending, starting(1)))
	f.Add("")
	f.Fuzz(func(_ *testing.T, token string) { _, _ = parseToken(token, Ascending, DefaultTenant) })
}

func BenchmarkList_hundredOfTenThousand(b *testing.B) {
	store, err := newStore()
	must.NoError(b, err)
	for n := range 10_000 {
		_, err := store.apply(uint64(n+1), &SandboxCreate{Sandbox: starting(n)})
		must.NoError(b, err)
	}
	for b.Loop() {
		if _, err := store.List(Filter{Tenant: DefaultTenant}, Descending, Page{}); err != nil {
			b.Fatal(err)
		}
	}
}
