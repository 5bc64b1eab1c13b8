package project

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func TestWrite_isReadBackAndNotReplaced(t *testing.T) {
	dir := t.TempDir()
	_, ok, err := Load(dir)
	must.NoError(t, err)
	must.False(t, ok)
	path, err := Write(dir, "python", false)
	must.NoError(t, err)
	must.Eq(t, filepath.Join(dir, FileName), path)
	f, ok, err := Load(dir)
	must.NoError(t, err)
	must.True(t, ok)
	must.Eq(t, File{Template: "python"}, f)
	_, err = Write(dir, "node", false)
	must.ErrorIs(t, err, ErrExists)
	f, _, err = Load(dir)
	must.NoError(t, err)
	must.Eq(t, "python", f.Template)
	_, err = Write(dir, `odd "name" ${x}`, true)
	must.NoError(t, err)
	f, _, err = Load(dir)
	must.NoError(t, err)
	must.Eq(t, `odd "name" ${x}`, f.Template)
}

func TestWrite_followsNoLinkWithoutForce(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.Symlink(filepath.Join(dir, "elsewhere"), filepath.Join(dir, FileName)))
	_, err := Write(dir, "base", false)
	must.ErrorIs(t, err, ErrExists)
}

func TestParse(t *testing.T) {
	f, err := Parse([]byte(`
template = "base"
cpu      = 1.5
memory   = 256
timeout  = "10m"
user     = "root"
cwd      = "/srv"
hostname = "box"
env      = { A = "1" }
metadata = { project = "x" }
`), "x")
	must.NoError(t, err)
	must.Eq(t, File{
		Template: "base", CPU: 1.5, Memory: 256, Timeout: "10m", User: "root", Cwd: "/srv", Hostname: "box",
		Env: map[string]string{"A": "1"}, Metadata: map[string]string{"project": "x"},
	}, f)
	for _, tc := range []struct{ name, text, want string }{
		{"no template", `cpu = 1`, "template"},
		{"empty template", `template = ""`, "template"},
		{"address", "template = \"x\"\naddress = \"http://evil\"", "address"},
		{"key", "template = \"x\"\napi_key = \"sb_a_b\"", "api_key"},
		{"negative cpu", "template = \"x\"\ncpu = -1", "cpu"},
		{"negative memory", "template = \"x\"\nmemory = -1", "memory"},
		{"bad timeout", "template = \"x\"\ntimeout = \"soon\"", "timeout"},
		{"zero timeout", "template = \"x\"\ntimeout = \"0s\"", "timeout"},
		{"function", `template = file("/etc/passwd")`, "unction"},
		{"variable", `template = "${env.HOME}"`, "ariable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text), "x")
			must.ErrorContains(t, err, tc.want)
		})
	}
}
