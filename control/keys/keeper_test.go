package keys_test

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/keys"
	"github.com/soulbox-dev/soulbox/control/keys/local"
)

// faulty is an issuer that fails while it is told to.
type faulty struct {
	keys.Issuer
	down  atomic.Bool
	calls atomic.Int64
}

func (f *faulty) Issue(ctx context.Context, req keys.Request) (*keys.Certificate, error) {
	f.calls.Add(1)
	if f.down.Load() {
		return nil, errors.New("the issuer is down")
	}
	return f.Issuer.Issue(ctx, req)
}

func TestKeeper_renewsInTimeAndKeepsTheOldOneMeanwhile(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ca, err := local.Open(t.TempDir())
		must.NoError(t, err)
		issuer := &faulty{Issuer: ca}
		k, err := keys.Keep(t.Context(), issuer, keys.Request{Identity: keys.Node("n"), TTL: time.Hour}, dir, nil)
		must.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			k.Run(ctx)
		}()
		first := k.Certificate()
		file, err := os.ReadFile(dir + "/" + keys.CertFile)
		must.NoError(t, err)
		must.Eq(t, string(first.Chain), string(file))

		time.Sleep(35 * time.Minute)
		must.Eq(t, first, k.Certificate())
		time.Sleep(10 * time.Minute)
		second := k.Certificate()
		must.NotEq(t, string(first.Chain), string(second.Chain))
		file, err = os.ReadFile(dir + "/" + keys.CertFile)
		must.NoError(t, err)
		must.Eq(t, string(second.Chain), string(file))

		issuer.down.Store(true)
		before := issuer.calls.Load()
		time.Sleep(2 * time.Hour)
		must.Eq(t, second, k.Certificate())
		must.ErrorContains(t, k.Err(), "the issuer is down")
		must.Between(t, 10, issuer.calls.Load()-before, 100, must.Sprint("tries in two hours"))
		issuer.down.Store(false)
		time.Sleep(10 * time.Minute)
		must.NoError(t, k.Err())
		must.Positive(t, time.Until(k.Certificate().NotAfter))
		cancel()
		<-done
	})
}

func TestKeep_failsWithoutAFirstCertificate(t *testing.T) {
	issuer := &faulty{}
	issuer.down.Store(true)
	_, err := keys.Keep(t.Context(), issuer, keys.Request{Identity: keys.Node("n")}, "", nil)
	must.ErrorContains(t, err, "the issuer is down")
}

func TestWriteFile_replacesOrLeaves(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, keys.WriteFile(dir+"/f", []byte("one")))
	must.NoError(t, keys.WriteFile(dir+"/f", []byte("two")))
	data, err := os.ReadFile(dir + "/f")
	must.NoError(t, err)
	must.Eq(t, "two", string(data))
	must.NoError(t, os.Mkdir(dir+"/d", 0o700))
	must.Error(t, keys.WriteFile(dir+"/d", []byte("x")))
	entries, err := os.ReadDir(dir)
	must.NoError(t, err)
	must.Len(t, 2, entries, must.Sprint("no temporary file is left"))
}
