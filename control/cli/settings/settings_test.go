package settings

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

func env(m map[string]string) func(string) string { return func(k string) string { return m[k] } }

func TestSources_order(t *testing.T) {
	file := File{Path: "/home/config.hcl", Values: map[string]string{Address: "file:1", APIKey: "sb_file_1", Template: "python"}}
	dev := File{Path: "/run/dev.hcl", Values: map[string]string{Address: "dev:1", APIKey: "sb_dev_1"}}
	full := map[string]string{EnvAddress: "env:1", EnvAPIKey: "sb_env_1"}
	for _, tc := range []struct {
		name, key, want, source string
		s                       Sources
	}{
		{"flag before all", Address, "http://flag:1", "flag", Sources{Flags: map[string]string{Address: "flag:1"}, Env: env(full), File: file, Dev: dev}},
		{"environment before file", Address, "http://env:1", "environment", Sources{Env: env(full), File: file, Dev: dev}},
		{"key from environment", APIKey, "sb_env_1", "environment", Sources{Env: env(full), File: file}},
		{"file before development server", Address, "http://file:1", "/home/config.hcl", Sources{Env: env(nil), File: file, Dev: dev}},
		{"key of the file goes with its address", APIKey, "sb_file_1", "/home/config.hcl", Sources{Env: env(nil), File: file, Dev: dev}},
		{"development server before default", Address, "http://dev:1", "/run/dev.hcl", Sources{Env: env(nil), Dev: dev}},
		{"its key with its address", APIKey, "sb_dev_1", "/run/dev.hcl", Sources{Env: env(nil), Dev: dev}},
		{"its key goes nowhere else", APIKey, "", "", Sources{Env: env(map[string]string{EnvAddress: "other:1"}), Dev: dev}},
		{"nor where a flag points", APIKey, "", "", Sources{Flags: map[string]string{Address: "other:1"}, Env: env(nil), Dev: dev}},
		{"default", Address, DefaultAddress, "default", Sources{Env: env(nil)}},
		{"no default for a key", APIKey, "", "", Sources{Env: env(nil)}},
		{"template from file", Template, "python", "/home/config.hcl", Sources{Env: env(nil), File: file}},
		{"template by default", Template, "base", "default", Sources{Env: env(nil)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := tc.s.Get(tc.key)
			must.NoError(t, err)
			must.Eq(t, tc.want, v.Value)
			must.Eq(t, tc.source, v.Source)
		})
	}
}

func TestSources_malformedValueNamesItsSource(t *testing.T) {
	_, err := Sources{Env: env(map[string]string{EnvAddress: "ftp://x"})}.Get(Address)
	must.ErrorContains(t, err, "address from environment")
	_, err = Sources{Env: env(map[string]string{EnvAPIKey: "sb_a b"})}.Get(APIKey)
	must.ErrorContains(t, err, "api_key from environment")
}

func TestParseAddress(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"127.0.0.1:7300", "http://127.0.0.1:7300"},
		{"sandboxes", "http://sandboxes:7300"},
		{"[::1]:80", "http://[::1]:80"},
		{"https://sandboxes.example.com", "https://sandboxes.example.com"},
		{"https://sandboxes.example.com:8443/", "https://sandboxes.example.com:8443"},
	} {
		got, err := ParseAddress(tc.in)
		must.NoError(t, err)
		must.Eq(t, tc.want, got)
	}
	for _, bad := range []string{"", "ftp://x", "http://", "http://user:pass@x", "http://x/path", "http://x?q=1", "http://x y", "http://[::1"} {
		_, err := ParseAddress(bad)
		must.Error(t, err, must.Sprint(bad))
	}
}

func TestKey_showHidesTheSecret(t *testing.T) {
	k, err := Find(APIKey)
	must.NoError(t, err)
	must.Eq(t, "sb_0123456789abcdef_…", k.Show("sb_0123456789abcdef_topsecret"))
	must.Eq(t, "e2b_0123456789abcdef…", k.Show("e2b_0123456789abcdef"+"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"))
	must.Eq(t, "…", k.Show("sb_secret"))
	must.Eq(t, "…", k.Show("nonsense"))
	must.Eq(t, "", k.Show(""))
}

func TestSet_keepsWhatIsThereAndIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "config.hcl")
	must.NoError(t, Set(path, Address, "sandboxes:7300"))
	st, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o600, st.Mode().Perm())
	must.NoError(t, os.WriteFile(path, []byte("# mine\naddress = \"http://a:1\" # here\n"), 0o644))
	must.NoError(t, Set(path, APIKey, "sb_x_y"))
	b, err := os.ReadFile(path)
	must.NoError(t, err)
	must.Eq(t, "# mine\naddress = \"http://a:1\" # here\napi_key = \"sb_x_y\"\n", string(b))
	st, err = os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o600, st.Mode().Perm())
	f, err := Load(path)
	must.NoError(t, err)
	must.Eq(t, map[string]string{Address: "http://a:1", APIKey: "sb_x_y"}, f.Values)
	must.False(t, f.Loose)
	must.NoError(t, Set(path, Address, ""))
	f, err = Load(path)
	must.NoError(t, err)
	must.Eq(t, map[string]string{APIKey: "sb_x_y"}, f.Values)
	entries, err := os.ReadDir(filepath.Dir(path))
	must.NoError(t, err)
	must.Len(t, 1, entries)
}

func TestSet_keepsALink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "dotfiles.hcl"), filepath.Join(dir, "config.hcl")
	must.NoError(t, os.WriteFile(real, nil, 0o600))
	must.NoError(t, os.Symlink(real, link))
	must.NoError(t, Set(link, Template, "python"))
	st, err := os.Lstat(link)
	must.NoError(t, err)
	must.True(t, st.Mode()&os.ModeSymlink != 0)
	f, err := Load(real)
	must.NoError(t, err)
	must.Eq(t, "python", f.Values[Template])
}

func TestSet_badInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.hcl")
	must.ErrorContains(t, Set(path, "addres", "x"), "there are address, api_key, template")
	must.ErrorContains(t, Set(path, Address, "ftp://x"), "address")
	must.ErrorContains(t, Set(path, APIKey, "sb_\n"), "0x0a")
	_, err := os.Stat(path)
	must.ErrorIs(t, err, os.ErrNotExist)
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", `adress = "x"`, "adress"},
		{"block", `nomad { }`, "nomad"},
		{"number", `address = 7`, "must be a string"},
		{"function", `address = env("HOME")`, "unction"},
		{"broken", `address = "`, "config.hcl"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(dir, "config.hcl")
			must.NoError(t, os.WriteFile(path, []byte(tc.text), 0o600))
			_, err := Load(path)
			must.ErrorContains(t, err, tc.want)
		})
	}
	f, err := Load(filepath.Join(dir, "none.hcl"))
	must.NoError(t, err)
	must.MapEmpty(t, f.Values)
	path := filepath.Join(dir, "open.hcl")
	must.NoError(t, os.WriteFile(path, []byte(`api_key = "sb_a_b"`), 0o644))
	f, err = Load(path)
	must.NoError(t, err)
	must.True(t, f.Loose)
}

func TestLoadDev_trustsOnlyTheCallersPrivateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dev.hcl")
	data := Encode(map[string]string{Address: "http://127.0.0.1:1", APIKey: "sb_a_b"})
	must.NoError(t, Write(path, data))
	must.Eq(t, "sb_a_b", LoadDev(path).Values[APIKey])
	must.NoError(t, os.Chmod(path, 0o640))
	must.MapEmpty(t, LoadDev(path).Values)
	must.NoError(t, os.Chmod(path, 0o600))
	link := filepath.Join(dir, "link.hcl")
	must.NoError(t, os.Symlink(path, link))
	must.MapEmpty(t, LoadDev(link).Values)
	if os.Geteuid() == 0 {
		must.NoError(t, os.Chown(path, 12345, 12345))
		must.MapEmpty(t, LoadDev(path).Values)
	}
}

func TestPath(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{EnvConfig: "/x/y.hcl", "HOME": "/h"}, "/x/y.hcl"},
		{map[string]string{"XDG_CONFIG_HOME": "/c", "HOME": "/h"}, "/c/soulbox/config.hcl"},
		{map[string]string{"XDG_CONFIG_HOME": "relative", "HOME": "/h"}, "/h/.config/soulbox/config.hcl"},
	} {
		got, err := Path(env(tc.env))
		must.NoError(t, err)
		must.Eq(t, tc.want, got)
	}
	_, err := Path(env(nil))
	must.ErrorContains(t, err, "HOME")
}
