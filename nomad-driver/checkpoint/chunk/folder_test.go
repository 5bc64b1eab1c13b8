package chunk_test

import (
	"os"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk/chunktest"
)

func TestFolder_conforms(t *testing.T) {
	b, err := chunk.OpenFolder(t.TempDir() + "/store")
	must.NoError(t, err)
	chunktest.Conform(t, b)
}

func TestStore_identityIsThatOfThePlaceAndTheKey(t *testing.T) {
	dir := t.TempDir()
	of := func(folder, key string) string {
		t.Helper()
		b, err := chunk.OpenFolder(dir + "/" + folder)
		must.NoError(t, err)
		k, err := chunk.OpenLocalKey(dir + "/" + key)
		must.NoError(t, err)
		s, err := chunk.Open(b, k)
		must.NoError(t, err)
		defer s.Close()
		id, err := s.Identity(t.Context())
		must.NoError(t, err)
		return id
	}
	a := of("a", "key1")
	must.Eq(t, a, of("a", "key1"))
	must.NotEq(t, a, of("a", "key2"))
	must.NotEq(t, a, of("b", "key1"))
	must.NoError(t, os.WriteFile(dir+"/b/id", []byte("../x"), 0o600))
	_, err := chunk.OpenFolder(dir + "/b")
	must.ErrorContains(t, err, "which is no identity")
}

func TestFolder_forgetsWritesThatWereCutShort(t *testing.T) {
	dir := t.TempDir()
	b, err := chunk.OpenFolder(dir)
	must.NoError(t, err)
	must.NoError(t, b.Put(t.Context(), "t/a/x", []byte("whole")))
	must.NoError(t, os.WriteFile(dir+"/t/a/.tmp-123", []byte("half"), 0o600))
	b, err = chunk.OpenFolder(dir)
	must.NoError(t, err)
	_, err = os.Stat(dir + "/t/a/.tmp-123")
	must.ErrorIs(t, err, os.ErrNotExist)
	got, err := b.Get(t.Context(), "t/a/x", 10)
	must.NoError(t, err)
	must.Eq(t, "whole", string(got))
}
