package auth

import (
	"context"
	"errors"
	"fmt"

	"github.com/soulbox-dev/soulbox/control/state"
)

// BootstrapName is the name of the first key.
const BootstrapName = "bootstrap"

// Bootstrap makes the first key of a cluster, once in its life, and writes it to the file at path with mode 0600. made is
// false where it was made before: the file, if it is still there, holds it then.
//
// The file is on disk before the key counts: a crash between the two leaves a file that the next start replaces, never a
// key that nobody has.
func (s *Service) Bootstrap(ctx context.Context, path string) (secret Secret, made bool, err error) {
	done, err := s.store.Bootstrapped()
	if err != nil || done {
		return Secret{}, false, err
	}
	secret = newSecret()
	if err := state.WriteFileDurably(path, []byte(secret.E2BKey()+"\n"), 0o600); err != nil {
		return Secret{}, false, fmt.Errorf("bootstrap key: %w", err)
	}
	first := s.record(secret, state.DefaultTenant, BootstrapName, BootstrapName)
	first.Roles, first.Global = []string{"admin"}, true
	_, err = s.store.Apply(ctx, &state.KeyBootstrap{Key: first})
	if errors.Is(err, state.ErrExists) {
		return Secret{}, false, nil // another server was faster
	}
	if err != nil {
		return Secret{}, false, fmt.Errorf("bootstrap key: %w", err)
	}
	return secret, true, nil
}
