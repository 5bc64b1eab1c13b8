package node

import (
	"fmt"
	"sort"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

func BenchmarkZZ(b *testing.B) {
	criu := sandboxtest.CRIU(b)
	d := startDaemon(b, "-criu", criu)
	d.importPython()
	steps := map[string][]float64{}
	var names []string
	for range 20 {
		sb := d.create(func(r *nodeapi.CreateRequest) { r.Template = "python" })
		begin := time.Now()
		_, err := d.client.Pause(b.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
		must.NoError(b, err)
		steps["pause"] = append(steps["pause"], float64(time.Since(begin))/1e6)
		begin = time.Now()
		_, err = d.client.Resume(b.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(b, err)
		steps["resume"] = append(steps["resume"], float64(time.Since(begin))/1e6)
		got, err := d.client.Get(b.Context(), sb.ID)
		must.NoError(b, err)
		names = nil
		for _, s := range got.Steps {
			steps[s.Name] = append(steps[s.Name], float64(s.Nanos)/1e6)
			names = append(names, s.Name)
		}
		must.NoError(b, d.client.Delete(b.Context(), sb.ID))
	}
	for _, n := range append(names, "pause", "resume") {
		s := steps[n]
		sort.Float64s(s)
		fmt.Printf("%-14s %.2f\n", n, s[len(s)/2])
	}
}
