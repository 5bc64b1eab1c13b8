package pid1

import (
	"testing"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// TestServer_listenersTakeNoPlaceOfOthers fills each kind of conversation to its limit and looks whether the other has room.
func TestServer_listenersTakeNoPlaceOfOthers(t *testing.T) {
	listens := &guest.Request{Op: guest.OpAttach, Attach: &guest.Attach{PID: 2, Lossy: true}}
	works := &guest.Request{Op: guest.OpAttach, Attach: &guest.Attach{PID: 2}}
	for _, c := range []struct {
		name        string
		full, other *guest.Request
		most        int
	}{
		{"listeners", listens, works, maxListeners},
		{"clients", works, listens, maxConns},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(fakeBackend{t}, nil)
			var leave []func()
			enter := func(r *guest.Request) bool {
				l, ok := s.admit(r)
				leave = append(leave, l)
				return ok
			}
			for i := range c.most {
				if !enter(c.full) {
					t.Fatalf("the %dth of %d has no place", i+1, c.most)
				}
			}
			if enter(c.full) {
				t.Errorf("there is a place beyond %d", c.most)
			}
			if !enter(c.other) {
				t.Error("the others have no place")
			}
			for _, l := range leave {
				l()
			}
			if s.talks != 0 || s.listeners != 0 {
				t.Errorf("%d and %d are still counted", s.talks, s.listeners)
			}
			if !enter(c.full) {
				t.Error("places are not given back")
			}
		})
	}
}
