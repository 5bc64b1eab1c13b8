package driver

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// DispatchFile is the name, in the task's local folder, of the dispatch payload that the control service sends: the whole
// nodeapi.CreateRequest of a sandbox. Where it exists, the task's config counts for nothing.
const DispatchFile = "sandbox.json"

// DefaultTemplate is used where a task's config names none.
const DefaultTemplate = "base"

// MaxDispatchBytes bounds the payload. Nomad itself takes at most 16 KiB.
const MaxDispatchBytes = 64 << 10

// request turns a task into what the node is asked for.
func request(cfg *drivers.TaskConfig, now time.Time) (nodeapi.CreateRequest, error) {
	req, err := dispatched(cfg)
	if errors.Is(err, fs.ErrNotExist) {
		req, err = configured(cfg, now)
	}
	if err != nil {
		return req, err
	}
	req.Owner.AllocID, req.Owner.TaskID, req.Owner.Folder = cfg.AllocID, cfg.ID, cfg.AllocDir
	// Where output goes on the host is Nomad's to say: a payload that names a file of the host would have the node write
	// into it.
	req.Logs, req.Publish, req.PublishIn = nil, nil, ""
	if err := reserved(&req, cfg); err != nil {
		return req, err
	}
	if req.Main != nil {
		req.Logs = logTargets(cfg)
	}
	namespace, err := groupNamespace(cfg)
	if err != nil {
		return req, err
	}
	if req.Owner.Kind != ownerNomad {
		if namespace != "" {
			return req, errors.New("dispatch payload: network modes bridge and cni are not supported for dispatched sandboxes, whose ports the platform publishes: leave mode out")
		}
		return req, withinTask(&req, cfg)
	}
	req.PublishIn = namespace
	if req.Publish, err = published(cfg, namespace != ""); err != nil {
		return req, err
	}
	return req, withinTask(&req, cfg)
}

// withinTask fills in limits from Nomad's resources block, and refuses a payload that asks for more memory than Nomad has
// reserved for the task. Nomad's share of processor is that of an ordinary sandbox: the class makes more or less of it.
func withinTask(req *nodeapi.CreateRequest, cfg *drivers.TaskConfig) error {
	if cfg.Resources == nil || cfg.Resources.LinuxResources == nil {
		return nil
	}
	l, r := &req.Limits, cfg.Resources.LinuxResources
	if l.MemoryBytes == 0 {
		l.MemoryBytes = r.MemoryLimitBytes
	}
	if r.MemoryLimitBytes > 0 && l.MemoryBytes > r.MemoryLimitBytes {
		return fmt.Errorf("dispatch payload: limits.memory_bytes %d is more than the %d that Nomad reserved", l.MemoryBytes, r.MemoryLimitBytes)
	}
	if w := cpuWeight(r.CPUShares); w != 0 && l.CPUWeight == 0 {
		l.CPUWeight = sandbox.QoS(req.QoS).CPUWeight(w)
	}
	return nil
}

// dispatched reads the request that the control service dispatched. The folder may have been prepared by an artifact or a
// template of the job: links are not followed.
func dispatched(cfg *drivers.TaskConfig) (nodeapi.CreateRequest, error) {
	var req nodeapi.CreateRequest
	name := filepath.Join(cfg.TaskDir().LocalDir, DispatchFile)
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return req, fmt.Errorf("dispatch payload: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return req, fmt.Errorf("dispatch payload: %w", err)
	} else if !fi.Mode().IsRegular() {
		return req, fmt.Errorf("dispatch payload: %s is not a regular file", DispatchFile)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxDispatchBytes+1))
	if err != nil {
		return req, fmt.Errorf("dispatch payload: %w", err)
	}
	if len(b) > MaxDispatchBytes {
		return req, fmt.Errorf("dispatch payload: more than %d bytes", MaxDispatchBytes)
	}
	if err := json.Unmarshal(b, &req); err != nil {
		return req, fmt.Errorf("dispatch payload: %w", err)
	}
	if _, err := api.ParseSandboxID(string(req.ID)); err != nil {
		return req, fmt.Errorf("dispatch payload: %w", err)
	}
	req.Owner.Kind = nodeapi.OwnerControl
	return req, nil
}

// configured builds the request from the task's config block. The sandbox's id follows from the task's, so that a start
// that Nomad repeats finds the sandbox of the first attempt.
func configured(cfg *drivers.TaskConfig, now time.Time) (nodeapi.CreateRequest, error) {
	var tc TaskConfig
	if err := cfg.DecodeDriverConfig(&tc); err != nil {
		return nodeapi.CreateRequest{}, fmt.Errorf("task config: %w", err)
	}
	deadline, err := tc.validate()
	if err != nil {
		return nodeapi.CreateRequest{}, err
	}
	req := nodeapi.CreateRequest{
		ID:       sandboxID(cfg.ID),
		Template: tc.Template,
		Hostname: tc.Hostname,
		Env:      map[string]string{},
		User:     tc.User,
		Cwd:      tc.Cwd,
		Profile:  tc.Profile,
		Limits: nodeapi.Limits{
			CPUMillis: tc.Limits.CPUMillis,
			PIDs:      tc.Limits.PIDs,
			TmpBytes:  tc.Limits.TmpMB << 20,
			NoFile:    tc.Limits.NoFile,

			DiskBytes:    tc.Limits.DiskMB << 20,
			DiskInodes:   tc.Limits.DiskInodes,
			IOReadBytes:  tc.Limits.IOReadBytes,
			IOWriteBytes: tc.Limits.IOWriteBytes,
			IOReadOps:    tc.Limits.IOReadOps,
			IOWriteOps:   tc.Limits.IOWriteOps,
		},
		QoS:   tc.QoS,
		Owner: nodeapi.Owner{Kind: ownerNomad},
	}
	if req.Template == "" {
		req.Template = DefaultTemplate
	}
	if req.User == "" {
		req.User = cfg.User
	}
	if deadline > 0 {
		req.Deadline = now.Add(deadline)
	}
	for _, env := range []map[string]string{cfg.Env, cfg.DeviceEnv, tc.Env} {
		for k, v := range env {
			req.Env[k] = v
		}
	}
	if tc.Command != "" {
		req.Main = &guest.Start{Argv: append([]string{tc.Command}, tc.Args...)}
	}
	return req, nil
}

// validate checks what the node cannot name in the words of a job file. What is left (names, odd bytes, limits) the node
// checks for all its callers.
func (tc *TaskConfig) validate() (deadline time.Duration, err error) {
	if err := sandbox.QoS(tc.QoS).Check(); tc.QoS != "" && err != nil {
		return 0, fmt.Errorf("task config: %w", err)
	}
	if tc.Command == "" && len(tc.Args) > 0 {
		return 0, errors.New("task config: args given without command")
	}
	if strings.ContainsRune(tc.Command, 0) {
		return 0, errors.New("task config: command contains a NUL byte")
	}
	for i, arg := range tc.Args {
		if strings.ContainsRune(arg, 0) {
			return 0, fmt.Errorf("task config: args[%d] contains a NUL byte", i)
		}
	}
	if tc.Cwd != "" && !path.IsAbs(tc.Cwd) {
		return 0, fmt.Errorf("task config: cwd %q is not an absolute path", tc.Cwd)
	}
	for _, l := range []struct {
		name  string
		value int64
		max   int64
	}{
		{"cpu_millis", tc.Limits.CPUMillis, 1 << 20},
		{"pids", tc.Limits.PIDs, 1 << 22},
		{"tmp_mb", tc.Limits.TmpMB, 1 << 24},
		{"nofile", tc.Limits.NoFile, 1 << 20},
		{"disk_mb", tc.Limits.DiskMB, 1 << 30},
		{"disk_inodes", tc.Limits.DiskInodes, 1 << 32},
		{"io_read_bytes", tc.Limits.IOReadBytes, 1 << 50},
		{"io_write_bytes", tc.Limits.IOWriteBytes, 1 << 50},
		{"io_read_ops", tc.Limits.IOReadOps, 1 << 32},
		{"io_write_ops", tc.Limits.IOWriteOps, 1 << 32},
	} {
		if l.value < 0 || l.value > l.max {
			return 0, fmt.Errorf("task config: limits.%s %d is not between 0 and %d", l.name, l.value, l.max)
		}
	}
	if tc.Deadline == "" {
		return 0, nil
	}
	deadline, err = time.ParseDuration(tc.Deadline)
	if err != nil {
		return 0, fmt.Errorf("task config: deadline: %w", err)
	}
	if deadline <= 0 {
		return 0, fmt.Errorf("task config: deadline %s is not above zero", deadline)
	}
	return deadline, nil
}

// sandboxID derives the sandbox's id from Nomad's task id, which is new at every restart of a task.
func sandboxID(taskID string) api.SandboxID {
	sum := sha256.Sum256([]byte(taskID))
	word := new(big.Int).SetBytes(sum[:]).Text(36)
	return api.SandboxID("i" + strings.Repeat("0", max(0, 20-len(word))) + word[max(0, len(word)-20):])
}

// cpuWeight maps the 2..262144 shares of cgroup v1 to the 1..10000 of cgroup v2.
func cpuWeight(shares int64) int64 {
	if shares <= 0 {
		return 0
	}
	return 1 + (min(max(shares, 2), 262144)-2)*9999/262142
}

// logTargets returns the FIFOs that Nomad reads the task's output from; none where the job disabled its logs.
func logTargets(cfg *drivers.TaskConfig) *nodeapi.LogTargets {
	t := &nodeapi.LogTargets{Stdout: cfg.StdoutPath, Stderr: cfg.StderrPath}
	for _, p := range []*string{&t.Stdout, &t.Stderr} {
		if *p == os.DevNull {
			*p = ""
		}
	}
	if t.Stdout == "" && t.Stderr == "" {
		return nil
	}
	return t
}
