package sandbox

import "testing"

// Walls are the parts of the hardening that a test can take away.
type Walls struct{ Seccomp, Landlock, Masks, Capabilities bool }

// Without takes walls away until the test ends. No other test may run meanwhile.
func Without(tb testing.TB, w Walls) {
	tb.Helper()
	old := without
	tb.Cleanup(func() { without = old })
	without.seccomp, without.landlock, without.masks, without.capabilities = w.Seccomp, w.Landlock, w.Masks, w.Capabilities
}
