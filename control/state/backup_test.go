package state

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func saved(t *testing.T, s *Server) []byte {
	t.Helper()
	_, write, err := s.Save(t.Context())
	must.NoError(t, err)
	var b bytes.Buffer
	must.NoError(t, write(&b))
	return b.Bytes()
}

func TestBackup_restoresEverythingAndForgetsWhatCameAfter(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Config{Dir: dir})
	for _, c := range script() {
		_, _ = s.Apply(t.Context(), c) // some are refused
	}
	want := dump(t, s)
	use, err := s.Usage(DefaultTenant)
	must.NoError(t, err)
	backup := saved(t, s)
	b, err := CheckBackup(bytes.NewReader(backup))
	must.NoError(t, err)
	must.Eq(t, s.Index(), b.Index)
	must.Eq(t, s.ServerID(), b.Server)

	mustApply(t, s, &TenantPut{Tenant: Tenant{ID: "later"}})
	mustApply(t, s, &SandboxEnd{Ends: []End{{ID: id(1), State: Stopped, Reason: "x", At: at(900)}}})
	policy := s.policy.Load()
	got, err := s.Restore(t.Context(), bytes.NewReader(backup))
	must.NoError(t, err)
	must.Eq(t, b, got)
	must.Eq(t, want, dump(t, s))
	must.Greater(t, policy, s.policy.Load(), must.Sprint("who keeps what follows from the tables is told"))
	now, err := s.Usage(DefaultTenant)
	must.NoError(t, err)
	must.Eq(t, use, now)
	_, err = s.Tenant("later")
	must.ErrorIs(t, err, ErrNotFound)

	// It goes on from there, also after a restart.
	mustApply(t, s, &TenantPut{Tenant: Tenant{ID: "again"}})
	must.Greater(t, b.Index, s.Index())
	must.NoError(t, s.Close())
	s = open(t, Config{Dir: dir})
	defer s.Close()
	_, err = s.Tenant("again")
	must.NoError(t, err)
	left, err := os.ReadDir(dir)
	must.NoError(t, err)
	for _, e := range left {
		must.StrNotHasPrefix(t, "restore-", e.Name())
	}

	// Another server takes it as well. Of another cluster, it would keep the id of that.
	other := open(t, Config{Dir: t.TempDir()})
	defer other.Close()
	mustApply(t, other, &ClusterPut{ID: s.known.get(), Again: true})
	must.NoError(t, second(other.Restore(t.Context(), bytes.NewReader(backup))))
	must.Eq(t, want, dump(t, other))
}

func TestBackup_thatIsNoneChangesNothing(t *testing.T) {
	s := open(t, Config{Dir: t.TempDir()})
	defer s.Close()
	for n := range 20 {
		mustApply(t, s, &SandboxCreate{Sandbox: starting(n)})
	}
	good := saved(t, s)
	line := bytes.IndexByte(good, '\n') + 1
	bad := map[string][]byte{
		"nothing": nil, "its first line": good[:line], "a tar": bytes.Repeat([]byte{0}, 1024),
		"a line without an end": bytes.Repeat([]byte("x"), 1<<20),
		"more than it":          append(bytes.Clone(good), "more"...),
		"two of them":           append(bytes.Clone(good), good...),
		"a newer version":       bytes.Replace(good, []byte(`"version":1`), []byte(`"version":2`), 1),
		"another index":         bytes.Replace(good, []byte(`"server":"`), []byte(`"server":"x`), 1),
	}
	for i := 0; i < len(good); i += 1 + len(good)/40 {
		bad["cut at "+string(rune('0'+i%10))+strings.Repeat("x", i/100)] = good[:i]
		flipped := bytes.Clone(good)
		flipped[i] ^= 1
		bad["a bit at "+string(rune('0'+i%10))+strings.Repeat("x", i/100)] = flipped
	}
	bad["one byte less"] = good[:len(good)-1]
	before := dump(t, s)
	index := s.Index()
	for name, b := range bad {
		_, err := s.Restore(t.Context(), bytes.NewReader(b))
		must.ErrorIs(t, err, ErrBackup, must.Sprintf("%.40s", name))
		_, err = CheckBackup(bytes.NewReader(b))
		must.ErrorIs(t, err, ErrBackup)
	}
	must.Eq(t, before, dump(t, s))
	must.Eq(t, index, s.Index())
	broken := errors.New("the line broke")
	_, err := s.Restore(t.Context(), io.MultiReader(bytes.NewReader(good[:len(good)/2]), failing{broken}))
	must.ErrorIs(t, err, broken)
	must.Eq(t, before, dump(t, s))
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestBackup_ofThreeServersIsTheLeadersAndReachesAll(t *testing.T) {
	c := openThree(t)
	c.write(t, &TenantPut{Tenant: Tenant{ID: "kept"}}, c.servers)
	// Who leads may change at any moment on a busy machine: each step is asked again of who leads then.
	var backup []byte
	until(t, "the leader's backup", func() bool {
		for _, s := range c.servers {
			if _, write, err := s.Save(t.Context()); err == nil {
				var b bytes.Buffer
				must.NoError(t, write(&b))
				backup = b.Bytes()
				return true
			}
		}
		return false
	})
	c.write(t, &TenantPut{Tenant: Tenant{ID: "later"}}, c.servers)
	until(t, "one server that saves and restores, and two that refuse both", func() bool {
		var saved, restored int
		for _, s := range c.servers {
			if _, _, err := s.Save(t.Context()); err == nil {
				saved++
			} else {
				must.ErrorIs(t, err, ErrNoLeader)
			}
			if _, err := s.Restore(t.Context(), bytes.NewReader(backup)); err == nil {
				restored++
			} else {
				must.ErrorIs(t, err, ErrNoLeader)
			}
		}
		return saved == 1 && restored == 1
	})
	c.write(t, &TenantPut{Tenant: Tenant{ID: "after"}}, c.servers)
	for _, s := range c.servers {
		until(t, "what was restored, and what came after, on "+s.ServerID(), func() bool {
			_, after := s.Tenant("after")
			_, later := s.Tenant("later")
			_, kept := s.Tenant("kept")
			return after == nil && kept == nil && errors.Is(later, ErrNotFound)
		})
	}
}

func FuzzCheckBackup(f *testing.F) {
	var b bytes.Buffer
	store, err := newStore()
	if err != nil {
		f.Fatal(err)
	}
	if err := writeBackup(&b, Backup{Format: backupFormat, Version: backupVersion}, store.read()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := CheckBackup(bytes.NewReader(b)); err != nil && !errors.Is(err, ErrBackup) {
			t.Fatal(err)
		}
	})
}
