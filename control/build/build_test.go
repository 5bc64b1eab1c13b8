package build

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/core/coretest"
	"github.com/soulbox-dev/soulbox/control/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

var owner = auth.Identity{KeyID: "k", Tenant: state.DefaultTenant}

func ptr[T any](v T) *T { return &v }

// newService is a builder over a real state and a fake node.
func newService(t *testing.T) *Service {
	t.Helper()
	core := coretest.New(t, nil)
	return open(t, core, filepath.Join(t.TempDir(), "uploads"))
}

func open(t *testing.T, core *coretest.Server, dir string) *Service {
	t.Helper()
	s, err := New(Config{State: core.State, Sandboxes: core.Sandboxes, Templates: core.Templates, Dir: dir})
	must.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func TestRequest_namesTheTemplate(t *testing.T) {
	s := newService(t)
	first, err := s.Request(t.Context(), owner, api.BuildRequest{Name: "mine:v1", Tags: []string{"stable"}, CPUCount: ptr[int64](2), MemoryMB: ptr[int64](512)})
	must.NoError(t, err)
	must.Eq(t, []string{"stable", "v1"}, first.Tags)
	must.Eq(t, []string{"mine"}, first.Names)
	must.Len(t, 36, []byte(first.BuildID))
	again, err := s.Request(t.Context(), owner, api.BuildRequest{Name: "mine"})
	must.NoError(t, err)
	must.Eq(t, []string{"default"}, again.Tags)
	must.Eq(t, first.TemplateID, again.TemplateID, must.Sprint("a second build of a new name is one of the same template"))
	other, err := s.Request(t.Context(), auth.Identity{Tenant: "other"}, api.BuildRequest{Name: "mine"})
	must.NoError(t, err)
	must.NotEq(t, first.TemplateID, other.TemplateID)

	info, err := s.Status(state.DefaultTenant, first.TemplateID, first.BuildID, 0, 10, "")
	must.NoError(t, err)
	must.Eq(t, api.BuildWaiting, info.Status)
	_, err = s.Status("other", first.TemplateID, first.BuildID, 0, 10, "")
	must.True(t, api.IsNotFound(err), must.Sprint("another tenant's build is not found"))
	must.True(t, api.IsNotFound(s.Start(t.Context(), auth.Identity{Tenant: "other"}, first.TemplateID, first.BuildID, api.BuildInstructions{FromTemplate: "base"})))
	mine, err := s.Builds(state.DefaultTenant, first.TemplateID)
	must.NoError(t, err)
	must.Len(t, 2, mine)
	theirs, err := s.Builds("other", first.TemplateID)
	must.NoError(t, err)
	must.SliceEmpty(t, theirs)

	for _, bad := range []api.BuildRequest{
		{}, {Name: "Upper"}, {Name: "a b"}, {Name: "../x"}, {Name: "a:B"}, {Name: "a", Tags: []string{""}}, {Name: "a", CPUCount: ptr[int64](0)},
		{Name: "a", MemoryMB: ptr[int64](127)}, {Name: strings.Repeat("a", 129)}, {Name: "a:00000000-0000-4000-8000-000000000000"},
	} {
		_, err := s.Request(t.Context(), owner, bad)
		must.Eq(t, 400, api.StatusOf(err), must.Sprintf("%+v", bad))
	}
}

func TestInstructions_areCheckedBeforeTheBuild(t *testing.T) {
	good := api.BuildInstructions{FromTemplate: "base", Steps: []api.BuildStep{
		{Type: "RUN", Args: []string{"true"}}, {Type: "RUN", Args: []string{"true", "root"}}, {Type: "ENV", Args: []string{"A", "b", "C", ""}},
		{Type: "COPY", Args: []string{"a", "b", "", "0755"}, FilesHash: hash}, {Type: "WORKDIR", Args: []string{"/srv"}}, {Type: "USER", Args: []string{"root"}},
	}}
	must.NoError(t, checkInstructions(good))
	for name, bad := range map[string]api.BuildInstructions{
		"no base":          {},
		"two bases":        {FromTemplate: "a", FromImage: "b"},
		"no image's name":  {FromImage: "http://a b"},
		"no registry":      {FromImage: "a", FromImageRegistry: []byte(`[]`)},
		"aws":              {FromImage: "a", FromImageRegistry: []byte(`{"type":"aws"}`)},
		"an unknown step":  {FromTemplate: "a", Steps: []api.BuildStep{{Type: "ADD", Args: []string{"x"}}}},
		"RUN of nothing":   {FromTemplate: "a", Steps: []api.BuildStep{{Type: "RUN"}}},
		"half an ENV":      {FromTemplate: "a", Steps: []api.BuildStep{{Type: "ENV", Args: []string{"A"}}}},
		"COPY of no hash":  {FromTemplate: "a", Steps: []api.BuildStep{{Type: "COPY", Args: []string{"a", "b"}}}},
		"a hash of a path": {FromTemplate: "a", Steps: []api.BuildStep{{Type: "COPY", Args: []string{"a", "b"}, FilesHash: "../../../../etc/passwd"}}},
		"an odd mode":      {FromTemplate: "a", Steps: []api.BuildStep{{Type: "COPY", Args: []string{"a", "b", "", "u+s"}, FilesHash: hash}}},
		"a NUL byte":       {FromTemplate: "a", Steps: []api.BuildStep{{Type: "RUN", Args: []string{"a\x00b"}}}},
		"too many steps":   {FromTemplate: "a", Steps: make([]api.BuildStep, maxSteps+1)},
	} {
		must.Eq(t, 400, api.StatusOf(checkInstructions(bad)), must.Sprint(name))
	}
	for image, want := range map[string]string{
		"e2bdev/base": "base", "e2bdev/base:latest": "base", "docker.io/e2bdev/base:1": "base", "e2bdev/code-interpreter:latest": "code-interpreter-v1",
		"ubuntu:24.04": "", "localhost:5000/base": "", "library/base": "",
	} {
		must.Eq(t, want, ownImage(image))
	}
}

func TestBuild_thatFailsSaysWhere(t *testing.T) {
	s := newService(t)
	for _, in := range []api.BuildInstructions{{FromTemplate: "nosuch"}, {FromImage: "127.0.0.1:1/ubuntu"}} {
		b, err := s.Request(t.Context(), owner, api.BuildRequest{Name: "mine"})
		must.NoError(t, err)
		must.NoError(t, s.Start(t.Context(), owner, b.TemplateID, b.BuildID, in))
		must.Eq(t, 409, api.StatusOf(s.Start(t.Context(), owner, b.TemplateID, b.BuildID, in)), must.Sprint("a build is started once"))
		var info api.TemplateBuildInfo
		coretest.Until(t, "it has failed", func() bool {
			info, err = s.Status(owner.Tenant, b.TemplateID, b.BuildID, 0, 10, "")
			return err == nil && info.Status == api.BuildError
		})
		must.Eq(t, "base", info.Reason.Step)
		must.StrContains(t, info.Reason.Message, in.FromTemplate+in.FromImage)
		must.Len(t, 1, info.LogEntries)
		rest, err := s.Status(owner.Tenant, b.TemplateID, b.BuildID, 1, 10, "")
		must.NoError(t, err)
		must.SliceEmpty(t, rest.LogEntries)
	}
}

// A build is every server's to tell of, and one that was left is ended by the next.
func TestBuild_outlivesItsServer(t *testing.T) {
	core := coretest.New(t, nil)
	dir := filepath.Join(t.TempDir(), "uploads")
	s := open(t, core, dir)
	b, err := s.Request(t.Context(), owner, api.BuildRequest{Name: "mine"})
	must.NoError(t, err)
	waiting, err := s.Request(t.Context(), owner, api.BuildRequest{Name: "later"})
	must.NoError(t, err)
	s.Close()
	// As a server leaves it that is killed.
	_, err = core.State.Apply(t.Context(), &state.BuildStart{ID: b.BuildID, Creator: "killed", At: time.Now()})
	must.NoError(t, err)
	_, err = core.State.Apply(t.Context(), &state.BuildLog{ID: b.BuildID, Creator: "killed", Entries: []state.BuildLogEntry{
		{At: time.Now(), Level: "info", Step: "1", Message: "RUN true"},
	}})
	must.NoError(t, err)
	core.Stop()
	core.Start(t)

	s = open(t, core, dir)
	var info api.TemplateBuildInfo
	coretest.Until(t, "it is ended", func() bool {
		info, err = s.Status(owner.Tenant, b.TemplateID, b.BuildID, 0, 10, "")
		return err == nil && info.Status == api.BuildError
	})
	must.StrContains(t, info.Reason.Message, "the server that ran the build has ended")
	must.Eq(t, "RUN true", info.LogEntries[0].Message)
	must.Len(t, 2, info.LogEntries)
	info, err = s.Status(owner.Tenant, waiting.TemplateID, waiting.BuildID, 0, 10, "")
	must.NoError(t, err)
	must.Eq(t, api.BuildWaiting, info.Status)

	cancelled, failed, err := s.Cancel(t.Context(), owner.Tenant)
	must.NoError(t, err)
	must.Eq(t, 1, cancelled)
	must.Eq(t, 0, failed)
	must.Eq(t, 409, api.StatusOf(s.Start(t.Context(), owner, waiting.TemplateID, waiting.BuildID, api.BuildInstructions{FromTemplate: "base"})))
}

func TestKey_isOfAllThatCounts(t *testing.T) {
	base := state.Template{Digest: "sha256:1"}
	in := api.BuildInstructions{FromTemplate: "base", Steps: []api.BuildStep{{Type: "COPY", Args: []string{"a", "b"}, FilesHash: hash}}}
	key := keyOf(base, in)
	same := in
	same.FromTemplate, same.Force = "other name", true
	must.Eq(t, key, keyOf(base, same))
	seen := map[string]bool{key: true}
	for _, change := range []func(*state.Template, *api.BuildInstructions){
		func(b *state.Template, _ *api.BuildInstructions) { b.Digest = "sha256:2" },
		func(_ *state.Template, in *api.BuildInstructions) { in.StartCmd = "x" },
		func(_ *state.Template, in *api.BuildInstructions) { in.FromImage = "x" },
		func(_ *state.Template, in *api.BuildInstructions) {
			in.Steps = []api.BuildStep{{Type: "COPY", Args: []string{"a", "b"}, FilesHash: strings.Repeat("1", 64)}}
		},
		func(_ *state.Template, in *api.BuildInstructions) {
			in.Steps = append(in.Steps, api.BuildStep{Type: "RUN", Args: []string{"x"}})
		},
	} {
		b, changed := base, in
		change(&b, &changed)
		must.MapNotContainsKey(t, seen, keyOf(b, changed))
		seen[keyOf(b, changed)] = true
	}
}

// What is printed is bounded, and said to be.
func TestLog_isBounded(t *testing.T) {
	b := &build{}
	for range maxEntries + 10 {
		b.say("info", "1", "x")
	}
	must.Len(t, maxEntries+1, b.pending)
	must.StrContains(t, b.pending[maxEntries].Message, "the log is full")
	b = &build{}
	l := &lines{b: b, level: "info", step: "1"}
	for range 400 {
		_, err := l.Write(bytes.Repeat([]byte("y"), maxLine))
		must.NoError(t, err)
	}
	l.end()
	must.StrContains(t, b.pending[len(b.pending)-1].Message, "the log is full")
	total := 0
	for chunk := b.take(); len(chunk) > 0; chunk = b.take() {
		for _, e := range chunk {
			total += len(e.Message)
		}
	}
	must.Between(t, maxLog-2*maxLine, total, maxLog+2*maxLine)
}

func TestUploads_areTheTenantsOwn(t *testing.T) {
	s := newService(t)
	present, ticket, err := s.Files("a", hash)
	must.NoError(t, err)
	must.False(t, present)
	must.Error(t, s.Upload(ticket, io.MultiReader(strings.NewReader("half"), broken{})))
	present, _, err = s.Files("a", hash)
	must.NoError(t, err)
	must.False(t, present, must.Sprint("half an upload is none"))
	must.NoError(t, s.Upload(ticket, strings.NewReader("all of it")))
	present, _, err = s.Files("a", hash)
	must.NoError(t, err)
	must.True(t, present)
	present, _, err = s.Files("b", hash)
	must.NoError(t, err)
	must.False(t, present, must.Sprint("the hash is a client's word"))
	b, err := os.ReadFile(s.uploads.path("a", hash))
	must.NoError(t, err)
	must.Eq(t, "all of it", string(b))
	left, err := filepath.Glob(filepath.Join(s.cfg.Dir, "*", "part-*"))
	must.NoError(t, err)
	must.SliceEmpty(t, left)

	must.Eq(t, 401, api.StatusOf(s.Upload("guessed", strings.NewReader("x"))))
	s.uploads.now = func() time.Time { return time.Now().Add(2 * ticketTime) }
	must.Eq(t, 401, api.StatusOf(s.Upload(ticket, strings.NewReader("x"))))
	for _, bad := range []string{"", "x", "../" + hash, strings.ToUpper(hash), hash + "0"} {
		_, _, err := s.Files("a", bad)
		must.Eq(t, 400, api.StatusOf(err), must.Sprint(bad))
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken off") }

func TestPlainTar_takesBothForms(t *testing.T) {
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	_, err := io.WriteString(w, "tar")
	must.NoError(t, err)
	must.NoError(t, w.Close())
	for _, in := range []io.Reader{&z, strings.NewReader("tar")} {
		r, err := plainTar(in)
		must.NoError(t, err)
		b, err := io.ReadAll(r)
		must.NoError(t, err)
		must.Eq(t, "tar", string(b))
	}
	_, err = plainTar(strings.NewReader("\x1f\x8bno gzip"))
	must.Error(t, err)
}

// The script runs in sandboxes; what it does with paths is the same here.
func TestCopyScript(t *testing.T) {
	for name, tc := range map[string]struct {
		src, dest, mode string
		before          string // a folder that exists
		want            map[string]string
		fails           bool
	}{
		"a file to a name":          {src: "one.txt", dest: "sub/new.txt", want: map[string]string{"sub/new.txt": "1"}},
		"a file into a folder":      {src: "one.txt", dest: "sub/", want: map[string]string{"sub/one.txt": "1"}},
		"a file into one that is":   {src: "one.txt", dest: "sub", before: "sub", want: map[string]string{"sub/one.txt": "1"}},
		"a folder's content":        {src: "dir", dest: "sub", want: map[string]string{"sub/two.txt": "2", "sub/deep/three": "3"}},
		"a folder onto one that is": {src: "dir", dest: "sub", before: "sub", want: map[string]string{"sub/two.txt": "2"}},
		"everything":                {src: ".", dest: "all", want: map[string]string{"all/one.txt": "1", "all/dir/two.txt": "2"}},
		"a pattern":                 {src: "*.txt", dest: "sub", want: map[string]string{"sub/one.txt": "1", "sub/a b.txt": "4"}},
		"a name with a space":       {src: "a b.txt", dest: "x y/z w", want: map[string]string{"x y/z w": "4"}},
		"a name that is an option":  {src: "-rf", dest: "-x", want: map[string]string{"-x": "5"}},
		"a mode":                    {src: "one.txt", dest: "new", mode: "0640", want: map[string]string{"new": "1"}},
		"what is not there":         {src: "none", dest: "x", fails: true},
		"no command of it":          {src: "$(touch pwned)", dest: "x", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			for f, text := range map[string]string{"one.txt": "1", "dir/two.txt": "2", "dir/deep/three": "3", "a b.txt": "4", "-rf": "5"} {
				must.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(from, f)), 0o755))
				must.NoError(t, os.WriteFile(filepath.Join(from, f), []byte(text), 0o644))
			}
			if tc.before != "" {
				must.NoError(t, os.Mkdir(filepath.Join(to, tc.before), 0o755))
			}
			dest := to + "/" + tc.dest
			out, err := exec.Command("/bin/sh", "-c", copyScript, "sh", from, tc.src, dest, "", tc.mode).CombinedOutput()
			must.Eq(t, tc.fails, err != nil, must.Sprintf("%s", out))
			for f, text := range tc.want {
				b, err := os.ReadFile(filepath.Join(to, f))
				must.NoError(t, err)
				must.Eq(t, text, string(b))
				if tc.mode != "" {
					st, err := os.Stat(filepath.Join(to, f))
					must.NoError(t, err)
					must.Eq(t, 0o640, st.Mode().Perm())
				}
			}
			_, err = os.Stat(filepath.Join(from, "pwned"))
			must.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}
