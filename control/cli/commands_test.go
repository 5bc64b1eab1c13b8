package cli

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must.NoError(t, os.MkdirAll("testdata", 0o755))
		must.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must.NoError(t, err)
	must.Eq(t, string(want), got, must.Sprintf("%s; -update writes it anew", path))
}

func TestHelp_ofEveryCommand(t *testing.T) {
	c := newFake(t).call(t)
	must.Eq(t, 127, c.run(t))
	golden(t, "help.txt", c.stderr)
	var all strings.Builder
	names := []string{
		"server", "dev", "init", "config", "config get", "config set", "config list", "config path", "sandbox", "sandbox create",
		"sandbox list", "sandbox info", "sandbox destroy", "exec", "cp", "logs", "template", "template import", "template list",
		"template delete", "template make", "node", "node audit", "node list", "node info", "node drain", "node mark", "node resume", "node rebalance", "version", "terminal", "terminal list", "terminal attach", "terminal kill",
		"link", "link create",
		"pool", "pool list", "pool info", "pool create", "pool update", "pool delete",
		"secret", "secret list", "secret info", "secret create", "secret update", "secret delete",
		"audit", "audit list", "audit follow", "audit head", "audit export", "audit verify",
		"operator", "operator snapshot", "operator snapshot save", "operator snapshot inspect", "operator snapshot restore", "operator raft", "operator raft list-peers", "operator raft remove-peer",
		"operator autopilot", "operator autopilot state", "operator autopilot config", "operator autopilot set-config",
		"quota", "quota get", "quota set", "quota usage",
		"sandbox limits", "sandbox pause", "sandbox resume", "sandbox fork",
		"snapshot", "snapshot create", "snapshot list", "snapshot info", "snapshot restore", "snapshot delete",
		"network", "network show", "network set", "network shape", "network test", "network publish", "network join", "network leave",
		"login", "logout", "auth", "auth whoami", "auth can-i", "key", "key list", "key create", "key revoke",
		"role", "role list", "role show", "role put", "role delete", "binding", "binding list", "binding create", "binding delete",
		"tenant", "tenant list", "tenant create", "tenant update", "tenant network", "template network", "template placement", "tenant suspend", "tenant resume", "tenant delete",
	}
	must.MapLen(t, len(names), commands(&Env{}))
	for _, name := range names {
		must.Eq(t, 0, c.run(t, append(strings.Fields(name), "-help")...), must.Sprint(name))
		all.WriteString("$ soulbox " + name + " -help\n\n" + c.stdout + "\n")
		for line := range strings.Lines(c.stdout) {
			must.LessEq(t, 81, len([]rune(line)), must.Sprintf("%s: %q", name, line))
		}
	}
	golden(t, "help-all.txt", all.String())
}

func TestCreate_sendsWhatTheFlagsSay(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	c.env["FROM_SHELL"] = "inherited"
	must.Eq(t, 0, c.run(t, "sandbox", "create", "-template=python", "-cpu=0.5", "-memory=2GiB", "-timeout=90s", "-env", "A=1", "-env=B=x=y",
		"-env", "FROM_SHELL", "-metadata=project=demo", "-user=root", "-cwd=/srv", "-hostname=box", "-quiet", "--", "sh", "-c", "true"))
	must.Eq(t, string(boxOne)+"\n", c.stdout)
	req := f.created[0]
	_, err := api.ParseSandboxID(string(req.SoulBox.ID))
	must.NoError(t, err)
	cpu, memory, timeout := 0.5, int64(2048), int64(90)
	must.Eq(t, api.NewSandbox{
		TemplateID: "python", Timeout: &timeout, EnvVars: map[string]string{"A": "1", "B": "x=y", "FROM_SHELL": "inherited"},
		Metadata: map[string]string{"project": "demo"}, SoulBox: &api.CreateOptions{
			ID: req.SoulBox.ID, CPU: &cpu, MemoryMB: &memory, User: "root", Cwd: "/srv", Hostname: "box", Command: []string{"sh", "-c", "true"},
		},
	}, req)
}

func TestCreate_sendsLimitsOfDiskAndItsClass(t *testing.T) {
	f := newFake(t)
	must.Eq(t, 0, f.call(t).run(t, "sandbox", "create", "-qos=best_effort", "-disk=2GiB", "-disk-inodes=5000", "-pids=99", "-io-read=1GiB",
		"-io-write=8", "-io-read-ops=100", "-io-write-ops=200", "-quiet"))
	req := f.created[0].SoulBox
	must.Eq(t, "best_effort", req.QoS)
	must.Eq(t, int64(2048), *req.DiskMB)
	must.Eq(t, int64(99), *req.PIDs)
	must.Eq(t, api.StorageLimits{
		DiskInodes: ptr[int64](5000), IOReadBytes: ptr[int64](1 << 30), IOWriteBytes: ptr[int64](8 << 20), IOReadOps: ptr[int64](100), IOWriteOps: ptr[int64](200),
	}, req.StorageLimits)
	must.Eq(t, 1, f.call(t).run(t, "sandbox", "create", "-io-write=none"), must.Sprint("there is nothing to lift yet"))
}

func TestLimits_sendsWhatTheFlagsSay(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	must.Eq(t, 0, c.run(t, "sandbox", "limits", "-cpu=0.5", "-memory=1GiB", "-io-write=none", string(boxOne)))
	must.Eq(t, []api.LimitsRequest{{CPU: ptr(0.5), MemoryMB: ptr[int64](1024), StorageLimits: api.StorageLimits{IOWriteBytes: ptr[int64](-1)}}}, f.limits)
	must.StrContains(t, c.stdout, "1024 MiB")
	must.Eq(t, 1, c.run(t, "sandbox", "limits", string(boxOne)))
	must.StrContains(t, c.stderr, "which limit?")
	must.Eq(t, 1, c.run(t, "sandbox", "limits", "-pids=0", string(boxOne)))
	must.StrContains(t, c.stderr, "greater than zero")
}

func TestCreate_output(t *testing.T) {
	c := newFake(t).call(t)
	must.Eq(t, 0, c.run(t, "sandbox", "create", "-json"))
	var created api.Created
	must.NoError(t, json.Unmarshal([]byte(c.stdout), &created))
	must.Eq(t, boxOne, created.ID)
	must.Len(t, 2, created.Steps)
	must.Eq(t, 0, c.run(t, "sandbox", "create", "-verbose"))
	must.StrContains(t, c.stdout, "Step             Time")
	must.StrContains(t, c.stdout, "place            7.00 ms")
	must.StrContains(t, c.stdout, "request, in all")
}

func TestCreate_badInput(t *testing.T) {
	c := newFake(t).call(t)
	for _, tc := range []struct{ flag, want string }{
		{"-cpu=0", "cpu"}, {"-cpu=-1", "cpu"}, {"-cpu=NaN", "cpu"}, {"-cpu=many", "cpu"},
		{"-memory=0", "memory"}, {"-memory=-5", "memory"}, {"-memory=10EB", "memory"}, {"-memory=99999999999999999", "memory"},
		{"-timeout=0s", "timeout"}, {"-timeout=-5m", "timeout"}, {"-timeout=soon", "timeout"},
		{"-env==x", "env"}, {"-env=NOT_SET_HERE", "NOT_SET_HERE"}, {"-metadata=x", "metadata"}, {"-nosuch", "nosuch"},
	} {
		must.Eq(t, 1, c.run(t, "sandbox", "create", tc.flag), must.Sprint(tc.flag))
		must.StrContains(t, c.stderr, tc.want)
		must.StrContains(t, c.stderr, "Usage: soulbox sandbox create")
	}
	must.SliceEmpty(t, c.created)
}

func TestInit_andCreateInTheFolder(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	must.Eq(t, 0, c.run(t, "init", "python"))
	must.Eq(t, 1, c.run(t, "init", "node"))
	must.StrContains(t, c.stderr, "-force replaces it")
	must.Eq(t, 0, c.run(t, "sandbox", "create"))
	must.Eq(t, "python", f.created[0].TemplateID)
	must.Eq(t, 0, c.run(t, "init", "-force", "node"))
	must.Eq(t, 0, c.run(t, "sandbox", "create"))
	must.Eq(t, "node", f.created[1].TemplateID)
	must.NoError(t, os.WriteFile(filepath.Join(c.dir, "soulbox.hcl"), []byte(`
template = "python"
cpu = 2
timeout = "1m"
env = { A = "file", B = "file" }
`), 0o644))
	must.Eq(t, 0, c.run(t, "sandbox", "create", "-template=base", "-env=A=flag"))
	must.Eq(t, "base", f.created[2].TemplateID)
	must.Eq(t, 2.0, *f.created[2].SoulBox.CPU)
	must.Eq(t, 60, *f.created[2].Timeout)
	must.Eq(t, map[string]string{"A": "flag", "B": "file"}, f.created[2].EnvVars)
	must.NoError(t, os.WriteFile(filepath.Join(c.dir, "soulbox.hcl"), []byte(`address = "http://evil"`), 0o644))
	must.Eq(t, 1, c.run(t, "sandbox", "create"))
	must.StrContains(t, c.stderr, "soulbox.hcl")
	c.dir = t.TempDir()
	must.Eq(t, 0, c.run(t, "sandbox", "create"))
	must.Eq(t, "base", f.created[3].TemplateID)
	must.Eq(t, 0, c.run(t, "config", "set", "template", "mine"))
	must.Eq(t, 0, c.run(t, "sandbox", "create"))
	must.Eq(t, "mine", f.created[4].TemplateID)
}

func TestList(t *testing.T) {
	c := newFake(t).call(t)
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-q"))
	must.Eq(t, string(boxOne)+"\n"+string(boxTwo)+"\n", c.stdout)
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-all", "-q"))
	must.Eq(t, string(boxOne)+"\n"+string(boxTwo)+"\n"+string(boxOld)+"\n", c.stdout)
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-state=stopped", "-q"))
	must.Eq(t, string(boxOld)+"\n", c.stdout)
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-limit=1", "-q"))
	must.Eq(t, string(boxOne)+"\n", c.stdout)
	must.StrContains(t, c.stderr, "There are more")
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-json", "-template=python"))
	var list []api.Sandbox
	must.NoError(t, json.Unmarshal([]byte(c.stdout), &list))
	must.Len(t, 1, list)
	must.Eq(t, boxTwo, list[0].ID)
	must.Eq(t, 0, c.run(t, "sandbox", "list"))
	must.RegexMatch(t, regexpOf(`^ID +Template +State +CPU +Memory +Created +Ends\niaaaaaaaaaaaaaaaaaaaa +base +running +1\.5 +512 MiB +\S+ ago +never\n`), c.stdout)
	must.Eq(t, 1, c.run(t, "sandbox", "list", "-state=sleeping"))
	must.StrContains(t, c.stderr, "starting, running")
	must.Eq(t, 1, c.run(t, "sandbox", "list", "-limit=0"))
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-template=none"))
	must.Eq(t, "No sandboxes\n", c.stdout)
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-template=none", "-json"))
	must.Eq(t, "[]\n", c.stdout)
}

func TestInfo(t *testing.T) {
	c := newFake(t).call(t)
	must.Eq(t, 0, c.run(t, "sandbox", "info", string(boxTwo)))
	must.StrContains(t, c.stdout, "CPU used    = 54.00 ms")
	must.StrContains(t, c.stdout, "Memory used = 3.0 MiB")
	must.StrContains(t, c.stdout, `Metadata    = project=x\x1b[31m`)
	must.StrNotContains(t, c.stdout, "\x1b")
	must.Eq(t, 0, c.run(t, "sandbox", "info", string(boxOld)))
	must.StrContains(t, c.stdout, "Exit     = main_exited, signal 9, out of memory")
	must.Eq(t, 0, c.run(t, "sandbox", "info", "-json", string(boxOld)))
	var s api.Sandbox
	must.NoError(t, json.Unmarshal([]byte(c.stdout), &s))
	must.Eq(t, 137, s.Exit.Code)
	must.Eq(t, 1, c.run(t, "sandbox", "info", "izzzzzzzzzzzzzzzzzzzz"))
	must.StrContains(t, c.stderr, "does not exist")
	must.Eq(t, 1, c.run(t, "sandbox", "info", "../../etc"))
	must.StrContains(t, c.stderr, "is not")
	must.Eq(t, 1, c.run(t, "sandbox", "info"))
}

func TestDestroy(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	must.Eq(t, 1, c.run(t, "sandbox", "destroy"))
	must.Eq(t, 1, c.run(t, "sandbox", "destroy", "-all", string(boxOne)))
	must.Eq(t, 1, c.run(t, "sandbox", "destroy", "-all"))
	must.StrContains(t, c.stderr, "-yes")
	must.MapLen(t, 3, f.boxes)
	must.Eq(t, 1, c.run(t, "sandbox", "destroy", string(boxOne), "izzzzzzzzzzzzzzzzzzzz", string(boxOne)))
	must.Eq(t, "Destroyed sandbox "+string(boxOne)+"\n", c.stdout)
	must.StrContains(t, c.stderr, "izzzzzzzzzzzzzzzzzzzz")
	must.Eq(t, 0, c.run(t, "sandbox", "destroy", "-all", "-yes"))
	must.Eq(t, "Destroyed sandbox "+string(boxTwo)+"\n", c.stdout)
	must.Eq(t, 0, c.run(t, "sandbox", "destroy", "-all"))
	must.Eq(t, "No sandboxes\n", c.stdout)
}

func TestLogs_rawIsTheOutputOfTheOwnCommand(t *testing.T) {
	f := newFake(t)
	f.logs = "one\ntwo\nthree\n"
	c := f.call(t)
	id := string(boxOne)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{id}, "one\ntwo\nthree\n"},
		{[]string{"-tail=2", id}, "two\nthree\n"},
		{[]string{"-tail", "0", id}, ""},
		{[]string{"-tail", "99", id}, "one\ntwo\nthree\n"},
		{[]string{"-f", id}, "one\ntwo\nthree\nmore\n"},
		{[]string{"-f", "-tail=1", id}, "three\nmore\n"},
		{[]string{id, "-stderr"}, "an error\n"},
	} {
		must.Eq(t, 0, c.run(t, append([]string{"logs", "-raw"}, tc.args...)...), must.Sprint(tc.args, c.stderr))
		must.Eq(t, tc.want, c.stdout, must.Sprint(tc.args))
	}
	must.Eq(t, 1, c.run(t, "logs", "-raw", "-tail=-1", id))
}

func TestLogs_areTheSandboxesLog(t *testing.T) {
	f := newFake(t)
	for i := range 2500 { // more than two pages
		f.entries = append(f.entries, api.LogEntry{Time: logTime.Add(time.Duration(i) * time.Millisecond), Level: "info", Source: "stdout", Message: fmt.Sprintf("line %d", i)})
	}
	f.entries = append(f.entries, api.LogEntry{
		Time: logTime.Add(time.Minute), Level: "warn", Source: "platform", Message: "evil\x1b[31m\ntwo", Fields: map[string]string{"pid": "7", "a": "b"},
	})
	c := f.call(t)
	id := string(boxOne)
	const last = `2026-11-01T10:01:00.000Z WARN  platform: a=b pid=7 evil\x1b[31m\ntwo` + "\n"
	const more = "2026-11-01T11:00:00.000Z INFO  stdout: more\n"
	must.Eq(t, 0, c.run(t, "logs", id), must.Sprint(c.stderr))
	must.Eq(t, 2501, strings.Count(c.stdout, "\n"))
	must.StrHasPrefix(t, "2026-11-01T10:00:00.000Z INFO  stdout: line 0\n", c.stdout)
	must.StrHasSuffix(t, last, c.stdout)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"-tail=1", id}, last},
		{[]string{"-tail=2", "-search=line", id}, "2026-11-01T10:00:02.498Z INFO  stdout: line 2498\n2026-11-01T10:00:02.499Z INFO  stdout: line 2499\n"},
		{[]string{"-tail=0", id}, ""},
		{[]string{"-f", "-tail=1", id}, last + more},
		{[]string{"-f", "-tail=0", id}, more},
		{[]string{"-f", "-since=2026-11-01T10:00:30Z", id}, last + more},
		{[]string{"-f", "-tail=1", string(boxOld)}, last}, // it has ended
	} {
		must.Eq(t, 0, c.run(t, append([]string{"logs"}, tc.args...)...), must.Sprint(tc.args, c.stderr))
		must.Eq(t, tc.want, c.stdout, must.Sprint(tc.args))
	}
	must.Eq(t, 0, c.run(t, "logs", "-tail=2001", "-json", id))
	must.Eq(t, 2001, strings.Count(c.stdout, "\n"))
	must.StrHasPrefix(t, `{"time":"2026-11-01T10:00:00.5Z","level":"info","source":"stdout","message":"line 500"}`, c.stdout)
	f.logQueries = nil
	must.Eq(t, 0, c.run(t, "logs", "-f", "-level=warn", "-source=platform", "-search=evil", id))
	for _, q := range f.logQueries { // both the history's and the follower's
		must.Eq(t, "warn platform evil", q.Get("level")+" "+q.Get("source")+" "+q.Get("search"))
	}
	must.Eq(t, last, c.stdout[:len(last)])
	must.Eq(t, "2026-11-01T10:01:00Z", f.logQueries[len(f.logQueries)-1].Get("after"))
	for _, args := range [][]string{
		{"-level=loud", id}, {"-source=x", id}, {"-since=noon", id}, {"-stderr", id}, {"-raw", "-level=info", id}, {"-f", "-until=1m", id}, {"-tail=-1", id},
	} {
		must.Eq(t, 1, c.run(t, append([]string{"logs"}, args...)...), must.Sprint(args))
	}
}

func TestTerminals(t *testing.T) {
	c := newFake(t).call(t)
	must.Eq(t, 0, c.run(t, "terminal", "list", string(boxOne)), must.Sprint(c.stderr))
	must.RegexMatch(t, regexpOf(`^ID +State +Started +User +Command\n`+string(termOne)+` +running +1m0s ago +user +bash -l\nx +ended, code 137 `), c.stdout)
	must.Eq(t, 0, c.run(t, "terminal", "kill", string(termOne)))
	must.Eq(t, 1, c.run(t, "terminal", "kill", "other"))
	must.Eq(t, 1, c.run(t, "terminal", "attach"))
	must.Eq(t, 1, c.run(t, "terminal", "attach", string(termOne)))
	must.StrContains(t, c.stderr, "-read only looks")
	must.Eq(t, 1, c.run(t, "terminal", "attach", "-read", "-exclusive", string(termOne)))
}

func TestLinkCreate(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	must.Eq(t, 0, c.run(t, "link", "create", string(boxOne), "report.pdf"))
	must.Eq(t, "http://x/files?signature=v2.1.s\n", c.stdout)
	must.Eq(t, 0, c.run(t, "link", "create", "-op=write", "-expires=90500ms", "-user=root", "-json", string(boxOne), "/tmp/x"))
	must.StrContains(t, c.stdout, `"key_version": 1`)
	must.Eq(t, []api.LinkRequest{{Operation: "read", Path: "report.pdf"}, {Operation: "write", Path: "/tmp/x", User: "root", ExpiresIn: 91}}, f.links)
	for _, args := range [][]string{{}, {string(boxOne)}, {"-op=run", string(boxOne), "x"}, {"x", "y"}, {"-expires=-1s", string(boxOne), "x"}} {
		must.Eq(t, 1, c.run(t, append([]string{"link", "create"}, args...)...), must.Sprint(args))
	}
}

func TestTemplates(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	must.Eq(t, 0, c.run(t, "template", "list"))
	must.RegexMatch(t, regexpOf(`^Name +Digest +Files +Size +Created +Source\nbase +sha256:abababababab +9913 +326\.2 MiB +<none> +base\.tar\n$`), c.stdout)
	must.Eq(t, 0, c.run(t, "template", "list", "-json"))
	must.StrContains(t, c.stdout, `"name": "base"`)
	must.NoError(t, os.WriteFile(filepath.Join(c.dir, "root.tar"), []byte("bytes of a tar"), 0o644))
	must.Eq(t, 0, c.run(t, "template", "import", "mine", "root.tar"))
	must.StrContains(t, c.stdout, "Imported template mine: 3 files, 2.0 KiB")
	must.Eq(t, "bytes of a tar", string(f.uploads["mine from root.tar"]))
	must.NoError(t, os.MkdirAll(filepath.Join(c.dir, "root/etc"), 0o755))
	must.Eq(t, 0, c.run(t, "template", "import", "folder", "root"))
	must.StrContains(t, string(f.uploads["folder from root"]), "./etc")
	c.stdin = "piped"
	must.Eq(t, 0, c.run(t, "template", "import", "-json", "pipe", "-"))
	must.Eq(t, "piped", string(f.uploads["pipe from standard input"]))
	must.Eq(t, 1, c.run(t, "template", "import", "mine", "nosuch.tar"))
	must.Eq(t, 1, c.run(t, "template", "import", "mine"))
	must.Eq(t, 0, c.run(t, "template", "delete", "base"))
	must.Eq(t, 1, c.run(t, "template", "delete", "base", "nosuch"))
	must.StrContains(t, c.stdout, "Deleted template base")
	must.StrContains(t, c.stderr, "soulbox template list")
}

func TestVersion(t *testing.T) {
	c := newFake(t).call(t)
	must.Eq(t, 0, c.run(t, "version"))
	must.RegexMatch(t, regexpOf(`Server +v0\.1\.0 +1 +abc`), c.stdout)
	must.Eq(t, 0, c.run(t, "version", "-json"))
	var v versions
	must.NoError(t, json.Unmarshal([]byte(c.stdout), &v))
	must.Eq(t, "0.1.0", v.Server.Version)
	c.Close()
	must.Eq(t, 0, c.run(t, "version"))
	must.StrContains(t, c.stderr, "not known")
	must.Eq(t, 0, c.run(t, "-version"))
	must.StrContains(t, c.stdout, "SoulBox v")
}

func TestErrors_sayWhatToDo(t *testing.T) {
	f := newFake(t)
	for _, tc := range []struct {
		name string
		edit func(c *call)
		args []string
		want []string
	}{
		{"no server", func(c *call) { c.env["SOULBOX_ADDR"] = "127.0.0.1:1" }, []string{"sandbox", "list"}, []string{"`soulbox dev`", "http://127.0.0.1:1", "-address"}},
		{"no key", func(c *call) { delete(c.env, "SOULBOX_API_KEY") }, []string{"sandbox", "list"}, []string{"There is no API key", "SOULBOX_API_KEY"}},
		{"wrong key", func(c *call) { c.env["SOULBOX_API_KEY"] = "sb_aa_other" }, []string{"sandbox", "list"}, []string{"sb_aa_…", "environment"}},
		{"no such template", func(*call) {}, []string{"sandbox", "create", "-template=nosuch"}, []string{"soulbox template import"}},
		{"not running", func(*call) {}, []string{"exec", string(boxOld), "ls"}, []string{"soulbox sandbox info"}},
		{"bad address", func(c *call) { c.env["SOULBOX_ADDR"] = "ftp://x" }, []string{"sandbox", "list"}, []string{"address from environment", "http or https"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := f.call(t)
			tc.edit(c)
			must.NotEq(t, 0, c.run(t, tc.args...))
			for _, w := range tc.want {
				must.StrContains(t, c.stderr, w)
			}
			must.StrNotContains(t, c.stderr, "other")
		})
	}
}

func TestConfig(t *testing.T) {
	f := newFake(t)
	c := f.call(t)
	delete(c.env, "SOULBOX_ADDR")
	delete(c.env, "SOULBOX_API_KEY")
	must.Eq(t, 0, c.run(t, "config", "path"))
	path := strings.TrimSpace(c.stdout)
	must.Eq(t, filepath.Join(c.env["HOME"], ".config/soulbox/config.hcl"), path)
	must.Eq(t, 1, c.run(t, "config", "get", "api_key"))
	must.Eq(t, 0, c.run(t, "config", "set", "address", f.URL))
	c.stdin = testKey + "\n"
	must.Eq(t, 0, c.run(t, "config", "set", "api_key", "-"))
	st, err := os.Stat(path)
	must.NoError(t, err)
	must.Eq(t, 0o600, st.Mode().Perm())
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-q"))
	must.Eq(t, 0, c.run(t, "config", "get", "api_key"))
	must.Eq(t, testKey+"\n", c.stdout)
	must.Eq(t, 0, c.run(t, "config", "list"))
	must.StrContains(t, c.stdout, "sb_0123456789abcdef_…")
	must.StrNotContains(t, c.stdout, "secret")
	must.Eq(t, 0, c.run(t, "config", "list", "-json"))
	must.StrContains(t, c.stdout, path)
	c.env["SOULBOX_ADDR"] = "127.0.0.1:1"
	must.Eq(t, 1, c.run(t, "sandbox", "list"))
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-address", f.URL))
	must.Eq(t, 1, c.run(t, "config", "set", "nosuch", "x"))
	must.Eq(t, 1, c.run(t, "config", "set", "address", "ftp://x"))
	must.NoError(t, os.Chmod(path, 0o644))
	must.Eq(t, 0, c.run(t, "sandbox", "list", "-address", f.URL))
	must.StrContains(t, c.stderr, "chmod 600")
}

func TestServer_badConfigurationNamesTheField(t *testing.T) {
	c := newFake(t).call(t)
	path := filepath.Join(c.dir, "server.hcl")
	must.NoError(t, os.WriteFile(path, []byte("listen = \"nowhere\"\ndata_dir = \"relative\"\nraft {\n listen = \"0.0.0.0:7301\"\n server_id = \"a\"\n}\n"), 0o644))
	must.Eq(t, 1, c.run(t, "server", "-config", path))
	for _, want := range []string{"listen:", "data_dir:", "raft.listen:"} {
		must.StrContains(t, c.stderr, want)
	}
	must.Eq(t, 1, c.run(t, "server", "-config", path+".none"))
	must.Eq(t, 1, c.run(t, "server", "extra"))
}
