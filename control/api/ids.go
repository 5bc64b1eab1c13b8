package api

import (
	"crypto/rand"
	"fmt"
)

// SandboxID names a sandbox: "i" and 20 characters of [a-z0-9].
type SandboxID string

const (
	idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	idLen      = 20
)

// NewSandboxID returns a new random id (103 bits).
func NewSandboxID() SandboxID {
	return SandboxID("i" + randomWord(idLen))
}

// ParseSandboxID checks s. It accepts the old "<id>-<client id>" spelling of E2B clients and strips the client id.
func ParseSandboxID(s string) (SandboxID, error) {
	id := s
	for i := range len(s) {
		if s[i] == '-' {
			id = s[:i]
			break
		}
	}
	if len(id) != idLen+1 || id[0] != 'i' || !isWord(id) {
		return "", fmt.Errorf("sandbox id %.40q is not \"i\" and %d characters of [a-z0-9]", s, idLen)
	}
	return SandboxID(id), nil
}

func (id SandboxID) String() string { return string(id) }

// SnapshotID names a snapshot: "s" and 20 characters of [a-z0-9].
type SnapshotID string

// NewSnapshotID returns a new random id (103 bits).
func NewSnapshotID() SnapshotID {
	return SnapshotID("s" + randomWord(idLen))
}

// ParseSnapshotID checks s.
func ParseSnapshotID(s string) (SnapshotID, error) {
	if len(s) != idLen+1 || s[0] != 's' || !isWord(s) {
		return "", fmt.Errorf("snapshot id %.40q is not \"s\" and %d characters of [a-z0-9]", s, idLen)
	}
	return SnapshotID(s), nil
}

func (id SnapshotID) String() string { return string(id) }

// PoolID names a pool: "p" and 20 characters of [a-z0-9].
type PoolID string

// NewPoolID returns a new random id (103 bits).
func NewPoolID() PoolID {
	return PoolID("p" + randomWord(idLen))
}

// ParsePoolID checks s.
func ParsePoolID(s string) (PoolID, error) {
	if len(s) != idLen+1 || s[0] != 'p' || !isWord(s) {
		return "", fmt.Errorf("pool id %.40q is not \"p\" and %d characters of [a-z0-9]", s, idLen)
	}
	return PoolID(s), nil
}

func (id PoolID) String() string { return string(id) }

// NodeID names a node: under Nomad the Nomad client's id, else a UUID that the node made at its first start.
type NodeID string

func (id NodeID) String() string { return string(id) }

// isWord reports whether s has characters of [a-z0-9] only.
func isWord(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// randomWord returns n characters of [a-z0-9], without modulo bias.
func randomWord(n int) string {
	const limit = 256 - 256%len(idAlphabet)
	out := make([]byte, 0, n)
	buf := make([]byte, n+n/2)
	for len(out) < n {
		if _, err := rand.Read(buf); err != nil {
			panic(err) // crypto/rand.Read never fails on Linux
		}
		for _, b := range buf {
			if int(b) < limit && len(out) < n {
				out = append(out, idAlphabet[int(b)%len(idAlphabet)])
			}
		}
	}
	return string(out)
}
