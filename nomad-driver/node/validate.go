package node

import (
	"path"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// Bounds of a create request that the guest protocol or package sandbox does not set already.
const (
	maxHostname      = 63
	maxTemplateName  = 256
	maxEnvName       = 256
	maxUser          = 128
	maxPath          = 4096
	maxTag           = 128
	maxMetadata      = 64
	maxToken         = 256
	maxMetadataKey   = 128
	maxMetadataBytes = 16 << 10 // keys and values together: they are in every event of a sandbox
	maxOwnerWord     = 256
	maxSignal        = 64
	maxNoFile        = 1 << 20
	maxPIDs          = 1 << 22
	minTmpBytes      = 1 << 20
	minNoFile        = 64
	maxDiskBytes     = 1 << 50
	maxDiskInodes    = 1 << 32

	profileDefault = "default"
	profileStrict  = "strict"
)

// limitBounds are the bounds of every limit on this machine, by JSON name.
type limitBounds struct {
	cpus   int64 // thousandths of a core
	memory int64 // bytes
}

func machineBounds() limitBounds {
	b := limitBounds{cpus: int64(goruntime.NumCPU()) * 1000, memory: 1 << 62}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		b.memory = int64(si.Totalram) * int64(si.Unit)
	}
	return b
}

// defaultLimits returns what a request's zero means where the configuration does not say.
func defaultLimits(b limitBounds) nodeapi.Limits {
	return nodeapi.Limits{
		CPUMillis: min(2000, b.cpus), CPUWeight: 100, MemoryBytes: min(512<<20, b.memory), PIDs: 1024,
		TmpBytes: sandbox.DefaultTmpBytes, NoFile: sandbox.DefaultNoFile,
	}
}

// normalise checks a create request and fills in what it leaves to the node. Its errors name the field and the limit.
func (n *Node) normalise(req *nodeapi.CreateRequest) error {
	if id, err := api.ParseSandboxID(string(req.ID)); err != nil {
		return invalid("id: %v", err)
	} else if id != req.ID {
		return invalid("id: %q has a suffix", req.ID)
	}
	if req.Template == "" {
		return invalid("template is empty")
	}
	if err := checkWord("template", req.Template, maxTemplateName); err != nil {
		return err
	}
	if req.Hostname == "" {
		req.Hostname = string(req.ID)
	}
	if err := checkHostname(req.Hostname); err != nil {
		return err
	}
	set(&req.Profile, profileDefault)
	if req.Profile != profileDefault && req.Profile != profileStrict {
		return invalid("profile: %.40q is neither %s nor %s", req.Profile, profileDefault, profileStrict)
	}
	switch req.OnDeadline {
	case "", nodeapi.DeadlineStop, nodeapi.DeadlinePause:
	case nodeapi.DeadlinePauseFiles:
		if req.Main != nil {
			return invalid("on_deadline: %s does not go with main, with which the sandbox ends", req.OnDeadline)
		}
	default:
		return invalid("on_deadline: %.40q is none of %s, %s, %s", req.OnDeadline, nodeapi.DeadlineStop, nodeapi.DeadlinePause, nodeapi.DeadlinePauseFiles)
	}
	if err := checkEnv(req.Env); err != nil {
		return err
	}
	if err := checkGiven(req); err != nil {
		return err
	}
	if err := n.checkNetwork(req); err != nil {
		return err
	}
	if err := checkUser("user", req.User); err != nil {
		return err
	}
	if err := checkCwd("cwd", req.Cwd); err != nil {
		return err
	}
	set(&req.QoS, string(sandbox.Burstable))
	if err := sandbox.QoS(req.QoS).Check(); err != nil {
		return invalid("%v", err)
	}
	if err := n.checkLimits(&req.Limits, sandbox.QoS(req.QoS)); err != nil {
		return err
	}
	if err := n.disk.admit(&req.Limits); err != nil {
		return err
	}
	if !req.Deadline.IsZero() {
		req.Deadline = req.Deadline.UTC().Round(0)
		if y := req.Deadline.Year(); y > 9999 {
			return invalid("deadline: year %d is more than 9999", y)
		}
	}
	if req.Main != nil {
		if err := checkStart("main", *req.Main); err != nil {
			return err
		}
		if req.Main.Attach || req.Main.KillOnDetach {
			return invalid("main: attach and kill_on_detach are for exec")
		}
	}
	if err := checkLogs(req.Logs, req.Main != nil); err != nil {
		return err
	}
	if err := checkToken(req.AccessToken); err != nil {
		return err
	}
	return checkOwner(req.Owner, req.Metadata)
}

func checkHostname(h string) error {
	if len(h) > maxHostname {
		return invalid("hostname: %d bytes, at most %d", len(h), maxHostname)
	}
	for i, c := range []byte(h) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' && c != '.' || i == 0 || i == len(h)-1) {
			return invalid("hostname: %.70q is not made of letters, digits and inner hyphens and dots", h)
		}
	}
	return nil
}

func checkEnv(env map[string]string) error {
	if len(env) > guest.MaxArgs {
		return invalid("env: %d entries, at most %d", len(env), guest.MaxArgs)
	}
	size := 0
	for k, v := range env {
		if err := checkEnvName(k); err != nil {
			return err
		}
		if strings.ContainsRune(v, 0) {
			return invalid("env: the value of %s holds a NUL byte", k)
		}
		size += len(k) + len(v) + 2
	}
	if size > guest.MaxArgBytes {
		return invalid("env: %d bytes, at most %d", size, guest.MaxArgBytes)
	}
	return nil
}

func checkEnvName(k string) error {
	if k == "" || len(k) > maxEnvName {
		return invalid("env: a name of %d bytes, must be 1 to %d", len(k), maxEnvName)
	}
	for i, c := range []byte(k) {
		alpha := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !alpha && (i == 0 || c < '0' || c > '9') {
			return invalid("env: name %.40q is not made of letters, digits and _, or starts with a digit", k)
		}
	}
	return nil
}

// checkStart checks a command that a request wants started. The guest checks again what it relies on.
func checkStart(field string, s guest.Start) error {
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return invalid("%s.argv: names no program", field)
	}
	if len(s.Argv) > guest.MaxArgs || len(s.Env) > guest.MaxArgs {
		return invalid("%s: more than %d arguments or environment entries", field, guest.MaxArgs)
	}
	size := 0
	for i, a := range s.Argv {
		if strings.ContainsRune(a, 0) {
			return invalid("%s.argv[%d] holds a NUL byte", field, i)
		}
		size += len(a) + 1
	}
	for _, e := range s.Env {
		k, v, ok := strings.Cut(e, "=")
		if !ok {
			return invalid("%s.env: %.40q is not NAME=VALUE", field, e)
		}
		if err := checkEnvName(k); err != nil {
			return err
		}
		if strings.ContainsRune(v, 0) {
			return invalid("%s.env: the value of %s holds a NUL byte", field, k)
		}
		size += len(e) + 1
	}
	if size > guest.MaxArgBytes {
		return invalid("%s: %d bytes of arguments and environment, at most %d", field, size, guest.MaxArgBytes)
	}
	if err := checkUser(field+".user", s.User); err != nil {
		return err
	}
	if strings.ContainsRune(s.Cwd, 0) || len(s.Cwd) > maxPath {
		return invalid("%s.cwd: holds a NUL byte or more than %d bytes", field, maxPath)
	}
	if s.Tag != "" {
		return checkWord(field+".tag", s.Tag, maxTag)
	}
	return nil
}

func checkUser(field, u string) error {
	if u == "" {
		return nil
	}
	if strings.ContainsAny(u, " \t/\\") {
		return invalid("%s: %.40q holds a blank or a slash", field, u)
	}
	return checkWord(field, u, maxUser)
}

func checkCwd(field, p string) error {
	if p == "" {
		return nil
	}
	if !path.IsAbs(p) {
		return invalid("%s: %.60q is not an absolute path", field, p)
	}
	return checkPath(field, p)
}

// checkPath checks a path as a request gives it; what it means is for the guest to find out, inside.
func checkPath(field, p string) error {
	if p == "" {
		return invalid("%s is empty", field)
	}
	if len(p) > maxPath {
		return invalid("%s: %d bytes, at most %d", field, len(p), maxPath)
	}
	if strings.ContainsRune(p, 0) {
		return invalid("%s holds a NUL byte", field)
	}
	return nil
}

// checkWord refuses control characters and what is not UTF-8: such words end up in logs, tables and labels.
func checkWord(field, s string, limit int) error {
	if len(s) > limit {
		return invalid("%s: %d bytes, at most %d", field, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return invalid("%s is not UTF-8", field)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return invalid("%s: %.60q holds a character that cannot be printed", field, s)
		}
	}
	return nil
}

// checkLimits fills in the defaults, of which the weight depends on the class, and checks the bounds.
func (n *Node) checkLimits(l *nodeapi.Limits, qos sandbox.QoS) error {
	d := n.defaults
	// A default /tmp does not take more than all of the memory that it counts as.
	memory := l.MemoryBytes
	set(&memory, d.MemoryBytes)
	for _, f := range []struct {
		name     string
		v        *int64
		def      int64
		min, max int64
	}{
		{"limits.cpu_millis", &l.CPUMillis, d.CPUMillis, sandbox.MinCPUMillis, n.bounds.cpus},
		{"limits.cpu_weight", &l.CPUWeight, qos.CPUWeight(d.CPUWeight), 1, 10000},
		{"limits.memory_bytes", &l.MemoryBytes, d.MemoryBytes, sandbox.MinMemoryBytes, n.bounds.memory},
		{"limits.pids", &l.PIDs, d.PIDs, sandbox.MinPIDs, maxPIDs},
		{"limits.tmp_bytes", &l.TmpBytes, min(d.TmpBytes, max(memory, minTmpBytes)), minTmpBytes, n.bounds.memory},
		{"limits.nofile", &l.NoFile, d.NoFile, minNoFile, maxNoFile},
		{"limits.disk_bytes", &l.DiskBytes, d.DiskBytes, sandbox.MinDiskBytes, maxDiskBytes},
		{"limits.disk_inodes", &l.DiskInodes, d.DiskInodes, sandbox.MinDiskInodes, maxDiskInodes},
		{"limits.io_read_bytes", &l.IOReadBytes, d.IOReadBytes, sandbox.MinIOBytes, maxDiskBytes},
		{"limits.io_write_bytes", &l.IOWriteBytes, d.IOWriteBytes, sandbox.MinIOBytes, maxDiskBytes},
		{"limits.io_read_ops", &l.IOReadOps, d.IOReadOps, sandbox.MinIOOps, maxDiskInodes},
		{"limits.io_write_ops", &l.IOWriteOps, d.IOWriteOps, sandbox.MinIOOps, maxDiskInodes},
	} {
		set(f.v, f.def)
		if *f.v == 0 || *f.v == cgroup.Unlimited && strings.HasPrefix(f.name, "limits.io_") {
			continue // those of disk and io, for which there may be no default, and none may be asked for
		}
		if *f.v < f.min || *f.v > f.max {
			return invalid("%s: %d is not between %d and %d", f.name, *f.v, f.min, f.max)
		}
	}
	return nil
}

func checkLogs(l *nodeapi.LogTargets, main bool) error {
	if l == nil {
		return nil
	}
	if !main {
		return invalid("logs: there is no main process whose output they could get")
	}
	for _, p := range []struct{ name, path string }{{"logs.stdout", l.Stdout}, {"logs.stderr", l.Stderr}} {
		if p.path == "" {
			continue
		}
		if err := checkPath(p.name, p.path); err != nil {
			return err
		}
		if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path {
			return invalid("%s: %.60q is not a clean absolute path", p.name, p.path)
		}
	}
	return nil
}

func checkOwner(o nodeapi.Owner, metadata map[string]string) error {
	for _, f := range []struct{ name, v string }{
		{"owner.kind", o.Kind}, {"owner.alloc_id", o.AllocID}, {"owner.task_id", o.TaskID},
	} {
		if err := checkWord(f.name, f.v, maxOwnerWord); err != nil {
			return err
		}
	}
	if o.Folder != "" {
		if err := checkPath("owner.folder", o.Folder); err != nil {
			return err
		}
		if !filepath.IsAbs(o.Folder) || filepath.Clean(o.Folder) != o.Folder {
			return invalid("owner.folder: %.60q is not a clean absolute path", o.Folder)
		}
	}
	if len(metadata) > maxMetadata {
		return invalid("metadata: %d entries, at most %d", len(metadata), maxMetadata)
	}
	size := 0
	for k, v := range metadata {
		if size += len(k) + len(v); size > maxMetadataBytes {
			return invalid("metadata: more than %d bytes", maxMetadataBytes)
		}
		if k == "" {
			return invalid("metadata: an empty key")
		}
		if err := checkWord("metadata: key", k, maxMetadataKey); err != nil {
			return err
		}
		if !utf8.ValidString(v) {
			return invalid("metadata: the value of %q is not UTF-8", k)
		}
	}
	return nil
}

func checkSignal(field string, s int) error {
	if s < 1 || s > maxSignal {
		return invalid("%s: %d is not between 1 and %d", field, s, maxSignal)
	}
	return nil
}

func checkDeadline(t, now time.Time) error {
	if !t.IsZero() && !t.After(now) {
		return invalid("deadline: %s has passed", t.Format(time.RFC3339))
	}
	return nil
}

// checkToken accepts what fits into a header. The value itself is in no message.
func checkToken(token string) error {
	if len(token) > maxToken {
		return invalid("access_token: %d bytes, at most %d", len(token), maxToken)
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c >= 0x7f {
			return invalid("access_token: holds something else than printable ASCII")
		}
	}
	return nil
}
