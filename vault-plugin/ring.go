package soulboxsecrets

import (
	"crypto/rand"
	"fmt"
	"time"
)

const (
	secretBytes = 32   // of a version: a key of HMAC-SHA256, or a seed of Ed25519
	maxVersions = 1000 // that are not revoked
)

// ring is the versions of one key, from Minimum to the newest. A version is never used again, and those below Minimum are gone.
type ring struct {
	Minimum  uint32       `json:"minimum"`
	Versions []keyVersion `json:"versions"` // in their order, without gaps; never empty
}

type keyVersion struct {
	Version uint32    `json:"version"`
	Secret  []byte    `json:"secret"`
	Created time.Time `json:"created"`
}

func newRing(now time.Time) *ring {
	r := &ring{Minimum: 1}
	_ = r.rotate(now)
	return r
}

// newest returns the version that signs.
func (r *ring) newest() keyVersion { return r.Versions[len(r.Versions)-1] }

func (r *ring) find(v uint32) (keyVersion, bool) {
	if v < r.Minimum || v-r.Minimum >= uint32(len(r.Versions)) {
		return keyVersion{}, false
	}
	return r.Versions[v-r.Minimum], true
}

// rotate adds a version.
func (r *ring) rotate(now time.Time) error {
	if len(r.Versions) >= maxVersions {
		return fmt.Errorf("%d versions are not revoked, which is the most: raise minimum_version first", maxVersions)
	}
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails on Linux
	r.Versions = append(r.Versions, keyVersion{Version: r.Minimum + uint32(len(r.Versions)), Secret: secret, Created: now.UTC()})
	return nil
}

// raise revokes every version below v. The newest cannot be revoked: what would sign then?
func (r *ring) raise(v uint32) error {
	if newest := r.newest().Version; v < r.Minimum || v > newest {
		return fmt.Errorf("minimum_version is %d, %d (the present one) to %d (the newest) are allowed: rotate before the newest is revoked", v, r.Minimum, newest)
	}
	r.Versions = append([]keyVersion(nil), r.Versions[v-r.Minimum:]...)
	r.Minimum = v
	return nil
}

// dropSuperseded revokes the versions that have not signed for longer than keep, and reports whether there were some.
func (r *ring) dropSuperseded(now time.Time, keep time.Duration) bool {
	minimum := r.Minimum
	for i := 1; i < len(r.Versions); i++ { // the newest always stays
		if now.Sub(r.Versions[i].Created) > keep {
			minimum = r.Versions[i].Version
		}
	}
	changed := minimum != r.Minimum
	if changed {
		_ = r.raise(minimum) // which is one of them
	}
	return changed
}
