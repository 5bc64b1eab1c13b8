package disk

import (
	"testing"

	"github.com/shoenig/test/must"
)

func TestUsage_full(t *testing.T) {
	for _, c := range []struct {
		name string
		u    Usage
		want bool
	}{
		{"no limit", Usage{Bytes: 1 << 40, Inodes: 1 << 30}, false},
		{"half", Usage{Bytes: 50, Inodes: 5, Limits: Limits{Bytes: 100, Inodes: 10}}, false},
		{"96 of 100 bytes", Usage{Bytes: 96, Limits: Limits{Bytes: 100}}, false},
		{"97 of 100 bytes", Usage{Bytes: 97, Limits: Limits{Bytes: 100}}, true},
		{"all inodes", Usage{Inodes: 10, Limits: Limits{Inodes: 10}}, true},
		{"inodes without a limit of them", Usage{Inodes: 10, Limits: Limits{Bytes: 100}}, false},
	} {
		must.Eq(t, c.want, c.u.Full(), must.Sprint(c.name))
	}
}
