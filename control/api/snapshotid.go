package api

import "fmt"

// SnapshotID names a snapshot: "s" and 20 of [a-z0-9].
type SnapshotID string

// NewSnapshotID returns a new random id (103 bits).
func NewSnapshotID() SnapshotID { return SnapshotID("s" + randomWord(idLen)) }

// ParseSnapshotID checks s.
func ParseSnapshotID(s string) (SnapshotID, error) {
	if len(s) != idLen+1 || s[0] != 's' {
		return "", fmt.Errorf("snapshot id %.40q is not \"s\" and %d characters of [a-z0-9]", s, idLen)
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return "", fmt.Errorf("snapshot id %.40q is not \"s\" and %d characters of [a-z0-9]", s, idLen)
		}
	}
	return SnapshotID(s), nil
}

func (id SnapshotID) String() string { return string(id) }
