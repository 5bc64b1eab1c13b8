// Package secret keeps named values of tenants that nobody can read back, and puts them where header rules of sandboxes name them.
//
// It owns their names, their encryption in the state, and the placeholder of the contract. It never gives a value to anything but a node
// that runs a sandbox whose rules name it, and never writes one to a log.
package secret

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// MaxValue is how long a value may be, in bytes.
const MaxValue = 8 << 10

// purpose is what the box is for.
const purpose = "secrets"

// State is what the service needs of the state; state.Server is it.
type State interface {
	Secret(tenant, ref string) (state.Secret, error)
	Secrets(tenant string) ([]state.Secret, error)
	Apply(ctx context.Context, c state.Command) (state.Result, error)
}

// Service keeps secrets. It is safe for concurrent use.
type Service struct {
	state State
	box   keys.Box
	now   func() time.Time
}

// New returns a service that encrypts with the keys of ring.
func New(st State, ring keys.Ring, now func() time.Time) *Service {
	if now == nil {
		now = time.Now
	}
	return &Service{state: st, box: keys.Box{Ring: ring, Purpose: purpose}, now: now}
}

// bound is what a value is encrypted for.
func bound(s state.Secret) string { return fmt.Sprintf("%s/%s/%d", s.Tenant, s.ID, s.Version) }

// Create makes a secret. A name that is taken is a conflict.
func (s *Service) Create(ctx context.Context, tenant, by, name, value string, metadata map[string]string) (state.Secret, error) {
	at := s.now().UTC()
	sec := state.Secret{
		ID: "sec_" + strings.ToLower(rand.Text()[:20]), Tenant: tenant, Name: strings.ToLower(name), Version: 1, Metadata: metadata,
		CreatedAt: at, CreatedBy: by, UpdatedAt: at, UpdatedBy: by,
	}
	return s.put(ctx, sec, 0, value)
}

// Update stores a value as the next version of a secret. Metadata that is not nil replaces what there was.
func (s *Service) Update(ctx context.Context, tenant, by, ref, value string, metadata map[string]string) (state.Secret, error) {
	for {
		sec, err := s.Get(tenant, ref)
		if err != nil {
			return state.Secret{}, err
		}
		was := sec.Version
		sec.Version, sec.UpdatedAt, sec.UpdatedBy = was+1, s.now().UTC(), by
		if metadata != nil {
			sec.Metadata = metadata
		}
		sec, err = s.put(ctx, sec, was, value)
		if !errors.Is(err, state.ErrConflict) {
			return sec, err
		}
		if err := ctx.Err(); err != nil { // else somebody else was first, and this one is the next
			return state.Secret{}, err
		}
	}
}

func (s *Service) put(ctx context.Context, sec state.Secret, was uint64, value string) (state.Secret, error) {
	switch {
	case value == "":
		return state.Secret{}, invalid("value is missing")
	case len(value) > MaxValue:
		return state.Secret{}, invalid("value has %d bytes, %d are allowed", len(value), MaxValue)
	}
	v, sealed, err := s.box.Close(bound(sec), []byte(value))
	if err != nil {
		return state.Secret{}, err
	}
	sec.Key, sec.Sealed = uint32(v), sealed
	r, err := s.state.Apply(ctx, &state.SecretPut{Secret: sec, Was: was})
	if errors.Is(err, state.ErrExists) {
		return state.Secret{}, api.Errorf(http.StatusConflict, api.CodeConflict, "secret %s exists already", sec.Name)
	}
	if errors.Is(err, state.ErrNotFound) && was != 0 {
		return state.Secret{}, missing(sec.Name)
	}
	return r.Secret, err
}

// Get returns a secret by its id or name.
func (s *Service) Get(tenant, ref string) (state.Secret, error) {
	sec, err := s.state.Secret(tenant, ref)
	if errors.Is(err, state.ErrNotFound) {
		return state.Secret{}, missing(ref)
	}
	return sec, err
}

// List returns a tenant's secrets, the newest first.
func (s *Service) List(tenant string) ([]state.Secret, error) { return s.state.Secrets(tenant) }

// Delete forgets a secret.
func (s *Service) Delete(ctx context.Context, tenant, ref string) (state.Secret, error) {
	sec, err := s.Get(tenant, ref)
	if err != nil {
		return state.Secret{}, err
	}
	_, err = s.state.Apply(ctx, &state.SecretDelete{Tenant: tenant, ID: sec.ID})
	if errors.Is(err, state.ErrNotFound) {
		return state.Secret{}, missing(ref)
	}
	return sec, err
}

// placeholder is what clients write where a value is to be. Those of other kinds are the contract's as well, and are for nobody here.
var placeholder = regexp.MustCompile(`\$\{e2b\.([^{}]*)\}`)

// kind is what the placeholders of secrets begin with.
const kind = "secrets."

// Names returns the names of the secrets that a text has placeholders for.
func Names(text string) []string {
	var out []string
	for _, m := range placeholder.FindAllStringSubmatch(text, -1) {
		if name, is := strings.CutPrefix(m[1], kind); is {
			out = append(out, strings.ToLower(name))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Fill puts values in the place of placeholders. A rule with one that nothing fills (no such secret, no key for it, a value that no header
// may have) says so in Lacks and keeps its text: its node refuses the requests that it is for. version names what was filled in, and is
// empty where there was nothing to fill.
func (s *Service) Fill(tenant string, rules []nodeapi.NetworkRule) (out []nodeapi.NetworkRule, version string, err error) {
	type filled struct {
		value   string
		version string
	}
	known := map[string]filled{} // an empty version: there is none
	look := func(name string) filled {
		if f, seen := known[name]; seen {
			return f
		}
		f := filled{}
		if sec, e := s.state.Secret(tenant, name); e == nil && !state.IsSecretID(name) {
			switch value, e := s.box.Open(bound(sec), keys.KeyVersion(sec.Key), sec.Sealed); {
			case e == nil:
				f = filled{string(value), fmt.Sprintf("%s:%d", sec.ID, sec.Version)}
			case !errors.Is(e, keys.ErrSeal):
				err = errors.Join(err, fmt.Errorf("secret %s of tenant %s: %w", name, tenant, e))
			}
		} else if e != nil && !errors.Is(e, state.ErrNotFound) {
			err = errors.Join(err, e)
		}
		known[name] = f
		return f
	}
	out = make([]nodeapi.NetworkRule, len(rules))
	for i, r := range rules {
		out[i] = nodeapi.NetworkRule{Domain: r.Domain, Headers: make(map[string]string, len(r.Headers))}
		for header, text := range r.Headers {
			lacks := map[string]bool{}
			got := placeholder.ReplaceAllStringFunc(text, func(m string) string {
				what := m[len("${e2b.") : len(m)-1]
				name, is := strings.CutPrefix(what, kind)
				if !is {
					lacks[what] = true
					return m
				}
				name = strings.ToLower(name)
				f := look(name)
				if f.version == "" {
					lacks[kind+name] = true
				}
				return f.value
			})
			if len(lacks) == 0 && got != text && (len(got) > nodeapi.MaxRuleValue || !httpguts.ValidHeaderFieldValue(got)) {
				lacks["header "+strings.ToLower(header)] = true
			}
			if len(lacks) > 0 {
				got = text
			}
			for what := range lacks {
				out[i].Lacks = append(out[i].Lacks, what)
			}
			out[i].Headers[header] = got
		}
		slices.Sort(out[i].Lacks)
		out[i].Lacks = slices.Compact(out[i].Lacks)
	}
	var all []string
	for name, f := range known {
		all = append(all, name+"="+f.version)
	}
	slices.Sort(all)
	return out, strings.Join(all, " "), err
}

func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}

func missing(ref string) error {
	return api.Errorf(http.StatusNotFound, api.CodeNotFound, "secret %.80q does not exist", ref)
}
