package checkpoint

import (
	"fmt"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/pager"
)

// What was touched orders what comes later, once for each piece, and nothing but that: what it names of no plan is passed over.
func TestTouched_ordersWhatComesLater(t *testing.T) {
	const mib = 1 << 20
	plan := &thin{
		files: []string{"pages-3.img", "pages-8.img"},
		late: []late{
			{pid: 8, file: 1, ranges: []pager.Range{{Dst: 64 * mib, Len: mib, Off: 4096, File: 1}, {Dst: 128*mib + 8192, Len: 2 * mib, Off: mib + 4096, File: 1}}},
			{pid: 3, file: 0, ranges: []pager.Range{{Dst: 256 * mib, Len: mib, Off: 0}}},
		},
	}
	touched := &Touched{Version: 1, Files: []string{"pages-8.img", "pages-9.img", "pages-3.img", "../../etc/passwd"}, Pages: []TouchedPage{
		{0, 1 + 256 + 17}, {2, 5}, {0, 1 + 20}, {0, 1 + 256 + 18}, // the last one is beside the first one
		{0, 0}, {0, 1 << 30}, {1, 7}, {3, 0}, {2, 256}, // nothing of these comes later
	}}
	want := []pager.First{
		{Space: 0, Dst: 128*mib + 64<<10, Len: 64 << 10}, {Space: 1, Dst: 256 * mib, Len: 64 << 10}, {Space: 0, Dst: 64*mib + 64<<10, Len: 64 << 10},
	}
	must.Eq(t, want, touched.order(plan))
	b, err := touched.Encode()
	must.NoError(t, err)
	again, err := ParseTouched(b)
	must.NoError(t, err)
	must.Eq(t, want, again.order(plan))
	must.Nil(t, (*Touched)(nil).order(plan))
}

func TestTouched_addsUp(t *testing.T) {
	a := &Touched{Version: 1, Files: []string{"x", "y"}, Pages: []TouchedPage{{0, 1}, {1, 1}}}
	b := &Touched{Version: 1, Files: []string{"y", "z"}, Pages: []TouchedPage{{0, 1}, {1, 1}, {0, 2}}}
	var none *Touched
	sum, added := none.Add(a)
	must.Eq(t, 2, added)
	must.Eq(t, a, sum)
	sum, added = a.Add(b)
	must.Eq(t, 2, added)
	must.Eq(t, &Touched{Version: 1, Files: []string{"x", "y", "z"}, Pages: []TouchedPage{{0, 1}, {1, 1}, {2, 1}, {1, 2}}}, sum)
	_, added = sum.Add(b)
	must.Zero(t, added)
	many := &Touched{Version: 1, Files: []string{"x"}}
	for i := range uint32(2 * pager.MaxTouched) {
		many.Pages = append(many.Pages, TouchedPage{0, i})
	}
	sum, _ = sum.Add(many)
	must.Len(t, pager.MaxTouched, sum.Pages)
	enc, err := sum.Encode()
	must.NoError(t, err)
	must.Less(t, MaxTouched, len(enc))
}

func TestParseTouched_refuses(t *testing.T) {
	page := strings.Repeat(",[0,1]", pager.MaxTouched+1)[1:]
	for name, text := range map[string]string{
		"no record":      "x",
		"version":        `{"version":2,"files":[],"pages":[]}`,
		"no such file":   `{"version":1,"files":["pages-1.img"],"pages":[[1,0]]}`,
		"negative":       `{"version":1,"files":["pages-1.img"],"pages":[[0,-1]]}`,
		"too many pages": fmt.Sprintf(`{"version":1,"files":["pages-1.img"],"pages":[%s]}`, page),
		"too many bytes": `{"version":1,"files":["` + strings.Repeat("x", MaxTouched) + `"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseTouched([]byte(text))
			must.Error(t, err)
		})
	}
}
