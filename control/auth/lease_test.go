package auth_test

import (
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// leaseInput is an operation on a key: to end it, or to ask whether it is good.
type leaseInput struct {
	key    int
	revoke bool
}

// A key is a lease: good from the moment that it is made until the moment that it is revoked, and never again, whoever asks meanwhile. To revoke it twice
// finds it gone, exactly once.
func TestKeys_areLinearizableLeases(t *testing.T) {
	_, a := start(t)
	const keys, clients = 20, 6
	secrets, ids := make([]string, keys), make([]string, keys)
	for i := range keys {
		secret, key, err := a.Create(t.Context(), "acme", "ci", "")
		must.NoError(t, err)
		secrets[i], ids[i] = secret.Key(), key.ID
	}
	begin := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	do := func(client int, in leaseInput, f func() error, no int) {
		call := time.Since(begin).Nanoseconds()
		err := f()
		back := time.Since(begin).Nanoseconds()
		if err != nil && api.StatusOf(err) != no {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: err == nil, Return: back})
	}
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for i := range keys {
				for range 10 {
					do(client, leaseInput{key: i}, func() error { _, err := a.Verify(secrets[i]); return err }, 401)
				}
				do(client, leaseInput{key: i, revoke: true}, func() error { return a.Revoke(t.Context(), "acme", ids[i]) }, 404)
				for range 5 {
					do(client, leaseInput{key: i}, func() error { _, err := a.Verify(secrets[i]); return err }, 401)
				}
			}
		})
	}
	wg.Wait()
	model := porcupine.Model{
		Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
			parts := make([][]porcupine.Operation, keys)
			for _, op := range h {
				i := op.Input.(leaseInput).key //nolint:forcetypeassert // put there above
				parts[i] = append(parts[i], op)
			}
			return parts
		},
		Init: func() any { return true },
		Step: func(st, in, out any) (bool, any) {
			good, op, ok := st.(bool), in.(leaseInput), out.(bool)
			return ok == good, good && !op.revoke
		},
	}
	must.Eq(t, porcupine.Ok, porcupine.CheckOperationsTimeout(model, history, 30*time.Second))
}
