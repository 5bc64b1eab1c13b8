package state

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Secret is a named value of a tenant's that nobody can read back: nodes put it into requests of sandboxes that name it. Of its versions only the
// newest is kept.
type Secret struct {
	ID       string            `codec:"id"`
	Tenant   string            `codec:"tenant"`
	Name     string            `codec:"name"` // lower case; unique among those of the tenant
	Version  uint64            `codec:"version"`
	Metadata map[string]string `codec:"metadata"`
	// Sealed is the value as package secret has encrypted it, and Key the version of the key that it did so with.
	Sealed []byte `codec:"sealed"`
	Key    uint32 `codec:"key"`

	CreatedAt   time.Time `codec:"created_at"`
	CreatedBy   string    `codec:"created_by"`
	UpdatedAt   time.Time `codec:"updated_at"`
	UpdatedBy   string    `codec:"updated_by"`
	CreateIndex uint64    `codec:"create_index"`
	ModifyIndex uint64    `codec:"modify_index"`
}

// Limits of a secret.
const (
	MaxSecretName     = 128
	MaxSecretMetadata = 1024     // bytes of a value
	maxSealed         = 16 << 10 // bytes
	secretIDForm      = `sec_[a-z0-9]{20}`
)

var (
	secretName = regexp.MustCompile(`^[a-z0-9_-]{1,128}$`)
	secretID   = regexp.MustCompile(`^` + secretIDForm + `$`)
)

// IsSecretID reports whether s has the form of a secret's id, which no name has to be.
func IsSecretID(s string) bool { return secretID.MatchString(s) }

// SecretPut records a secret, new or with its next version.
type SecretPut struct {
	Secret Secret `codec:"secret"`
	// Was is the version before; 0: there is none, and the name must be free. Another one by now is ErrConflict.
	Was uint64 `codec:"was"`
}

// SecretDelete forgets a secret of a tenant.
type SecretDelete struct {
	Tenant string `codec:"tenant"`
	ID     string `codec:"id"`
}

func (*SecretPut) kind() commandType    { return typeSecretPut }
func (*SecretDelete) kind() commandType { return typeSecretDelete }

func (c *SecretPut) check() error {
	s := &c.Secret
	switch {
	case s.Tenant == "":
		return limitErrorf("tenant", "is missing")
	case !secretID.MatchString(s.ID):
		return limitErrorf("secretID", "is not of the form %s", secretIDForm)
	case !secretName.MatchString(s.Name) || secretID.MatchString(s.Name):
		return limitErrorf("name", "is not 1 to %d characters a-z, 0-9, \"_\" and \"-\", or looks like an id", MaxSecretName)
	case len(s.Sealed) == 0 || len(s.Sealed) > maxSealed:
		return limitErrorf("value", "is %d bytes as it is kept, 1 to %d are allowed", len(s.Sealed), maxSealed)
	case s.Version != c.Was+1:
		return limitErrorf("version", "is %d, the next one is %d", s.Version, c.Was+1)
	case s.CreatedAt.IsZero() || s.UpdatedAt.IsZero():
		return limitErrorf("secret", "lacks one of its times")
	}
	for k, v := range s.Metadata {
		if len(v) > MaxSecretMetadata {
			return limitErrorf("metadata", "%.80q has %d bytes, %d are allowed", k, len(v), MaxSecretMetadata)
		}
	}
	return CheckMetadata(s.Metadata)
}

func (c *SecretPut) apply(tx *writeTx) (Result, error) {
	s := c.Secret
	if err := tx.tenant(s.Tenant); err != nil {
		return Result{}, err
	}
	old, err := first[Secret](tx.txn, tableSecret, s.ID)
	if err != nil {
		return Result{}, err
	}
	switch {
	case c.Was == 0 && old != nil:
		return Result{}, fmt.Errorf("secret %s: %w", s.ID, ErrExists)
	case c.Was == 0:
		row, err := tx.txn.First(tableSecret, indexName, s.Tenant, s.Name)
		if err != nil {
			return Result{}, fmt.Errorf("read table %s: %w", tableSecret, err)
		}
		if row != nil {
			return Result{}, fmt.Errorf("secret %s: %w", s.Name, ErrExists)
		}
		if err := tx.admit(s.Tenant, useOfSecret()); err != nil {
			return Result{}, err
		}
		s.CreateIndex = tx.index
	case old == nil || old.Tenant != s.Tenant:
		return Result{}, fmt.Errorf("secret %s: %w", s.ID, ErrNotFound)
	case old.Version != c.Was || old.Name != s.Name:
		return Result{}, fmt.Errorf("secret %s has version %d: %w", s.ID, old.Version, ErrConflict)
	default:
		s.CreatedAt, s.CreatedBy, s.CreateIndex = old.CreatedAt, old.CreatedBy, old.CreateIndex
	}
	s.ModifyIndex = tx.index
	if err := tx.txn.Insert(tableSecret, &s); err != nil {
		return Result{}, fmt.Errorf("write secret %s: %w", s.ID, err)
	}
	return Result{Secret: s, Changed: 1}, nil
}

func (c *SecretDelete) check() error {
	if c.Tenant == "" || c.ID == "" {
		return limitErrorf("secret", "lacks its tenant or id")
	}
	return nil
}

func (c *SecretDelete) apply(tx *writeTx) (Result, error) {
	s, err := first[Secret](tx.txn, tableSecret, c.ID)
	if err != nil {
		return Result{}, err
	}
	if s == nil || s.Tenant != c.Tenant {
		return Result{}, fmt.Errorf("secret %s: %w", c.ID, ErrNotFound)
	}
	if err := tx.txn.Delete(tableSecret, s); err != nil {
		return Result{}, fmt.Errorf("delete secret %s: %w", c.ID, err)
	}
	return Result{Secret: *s, Changed: 1}, nil
}

func useOfSecret() (u Use) {
	u[LimitSecrets] = 1
	return u
}

// Secret returns a tenant's secret by its id or its name, in whichever case.
func (s *Store) Secret(tenant, ref string) (Secret, error) {
	txn := s.read()
	var row *Secret
	if IsSecretID(ref) {
		found, err := first[Secret](txn, tableSecret, ref)
		if err != nil {
			return Secret{}, err
		}
		row = found
	} else {
		found, err := txn.First(tableSecret, indexName, tenant, strings.ToLower(ref))
		if err != nil {
			return Secret{}, fmt.Errorf("read table %s: %w", tableSecret, err)
		}
		row, _ = found.(*Secret)
	}
	if row == nil || row.Tenant != tenant {
		return Secret{}, fmt.Errorf("secret %.80q: %w", ref, ErrNotFound)
	}
	return *row, nil
}

// Secrets returns the secrets of a tenant, the newest first.
func (s *Store) Secrets(tenant string) ([]Secret, error) {
	it, err := s.read().Get(tableSecret, indexID)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	out := collect(it, func(v *Secret) bool { return v.Tenant == tenant })
	slices.SortFunc(out, func(a, b Secret) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}
