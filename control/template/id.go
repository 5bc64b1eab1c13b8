package template

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/soulbox-dev/soulbox/control/state"
)

const (
	idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	idLen      = 20
)

// NewID returns the id of a template that is new: 20 random characters of [a-z0-9].
func NewID() string {
	var b [idLen]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	return spellID(b[:])
}

// NewBuildID returns a random UUID.
func NewBuildID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return spellUUID(b[:])
}

// ID returns the id of a template, which is the same for all its tags. One that was imported on a node, or recorded before ids were,
// has one that is made of its name.
func ID(t state.Template) string {
	if t.TemplateID != "" {
		return t.TemplateID
	}
	base, _, _ := strings.Cut(t.Name, ":")
	sum := sha256.Sum256([]byte(t.Tenant + "\x00" + base))
	return spellID(sum[:idLen])
}

// BuildID returns the UUID of a template's content: that of the build that made it, else one of version 8 (RFC 9562) with the first 16
// bytes of its digest.
func BuildID(t state.Template) string {
	if t.BuildID != "" {
		return t.BuildID
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(t.Digest, digestPrefix))
	if err != nil || len(sum) < 16 {
		sum = make([]byte, 16)
	}
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	return spellUUID(sum[:16])
}

func spellID(b []byte) string {
	id := make([]byte, len(b))
	for i := range id {
		id[i] = idAlphabet[int(b[i])%len(idAlphabet)]
	}
	return string(id)
}

func spellUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// plain returns a name without what clients of the contract may add to it: the caller's own namespace, and the tag that a name
// without one means.
func plain(tenant, name string) string {
	return strings.TrimPrefix(strings.TrimSuffix(name, defaultTag), tenant+"/")
}

// spelled returns the name of a record for what a client calls it: by its name or id, with a tag or without.
func (s *Service) spelled(tenant, name string) (string, error) {
	name = plain(tenant, name)
	base, tag, tagged := strings.Cut(name, ":")
	if len(base) != idLen || strings.HasPrefix(name, digestPrefix) {
		return name, nil
	}
	all, err := s.List(tenant)
	if err != nil {
		return "", err
	}
	for _, t := range all {
		if !strings.Contains(t.Name, ":") && ID(t) == base {
			if tagged {
				return t.Name + ":" + tag, nil
			}
			return t.Name, nil
		}
	}
	return name, nil
}
