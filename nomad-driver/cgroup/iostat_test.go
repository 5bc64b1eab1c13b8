package cgroup

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestIO_addsUpDevices(t *testing.T) {
	for _, tc := range []struct {
		name  string
		parse func([]byte) IO
		file  string
		want  IO
	}{
		{"v1", parseV1IO, "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 4608\n8:0 Total 4608\n7:1 Read 4\n7:1 Write 0\nTotal 4612\n", IO{4100, 512, true}},
		{"v1, nothing yet", parseV1IO, "Total 0\n", IO{Measured: true}},
		{"v1, not numbers", parseV1IO, "8:0 Read -1\n8:0 Write x\n\n8:0\n", IO{Measured: true}},
		{"v2", parseV2IO, "8:0 rbytes=4096 wbytes=512 rios=1 wios=1 dbytes=9 dios=1\n253:0 rbytes=4 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n", IO{4100, 512, true}},
		{"v2, nothing yet", parseV2IO, "", IO{Measured: true}},
		{"v2, not numbers", parseV2IO, "8:0 rbytes= wbytes=x rbytes\n", IO{Measured: true}},
	} {
		t.Run(tc.name, func(t *testing.T) { must.Eq(t, tc.want, tc.parse([]byte(tc.file))) })
	}
}
