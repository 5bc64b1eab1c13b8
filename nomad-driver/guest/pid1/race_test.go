//go:build race

package pid1

// The race detector's own memory would be measured.
func init() { raceDetector = true }
