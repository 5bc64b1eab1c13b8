//go:build !failpoints

package failpoint

// On says whether this program was built for such tests.
const On = false

// At does nothing in a program that was not built for such tests.
func At(string) {}

// AtOther does nothing in a program that was not built for such tests.
func AtOther(string, int) {}
