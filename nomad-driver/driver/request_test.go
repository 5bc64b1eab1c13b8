package driver

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/nomad/structs"
	"github.com/hashicorp/nomad/plugins/drivers"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// task returns a task as Nomad hands it over, with tc as its config block.
func task(t *testing.T, tc TaskConfig) *drivers.TaskConfig {
	t.Helper()
	cfg := &drivers.TaskConfig{
		ID: "alloc-1/main/0badcafe", Name: "main", AllocID: "alloc-1", AllocDir: t.TempDir(),
		Env:        map[string]string{"NOMAD_TASK_NAME": "main", "A": "from nomad"},
		StdoutPath: "/alloc/logs/.main.stdout.fifo", StderrPath: "/alloc/logs/.main.stderr.fifo",
		Resources: &drivers.Resources{LinuxResources: &drivers.LinuxResources{
			CPUShares: 1024, MemoryLimitBytes: 256 << 20,
		}},
	}
	must.NoError(t, cfg.EncodeConcreteDriverConfig(&tc))
	return cfg
}

func TestRequest_takesDevicesFromNomadAlone(t *testing.T) {
	cfg := task(t, TaskConfig{})
	id := api.NewSandboxID()
	writeDispatch(t, cfg, nodeapi.CreateRequest{
		ID: id, Template: "base", Env: map[string]string{"MINE": "kept"},
		Devices: []nodeapi.Device{{Host: "/dev/sda", Path: "/dev/x", Access: "rw"}}, Mounts: []nodeapi.Mount{{Host: "/", Path: "/host"}},
	})
	got, err := request(cfg, now)
	must.NoError(t, err)
	must.SliceEmpty(t, got.Devices)
	must.SliceEmpty(t, got.Mounts)

	cfg.Devices = []*drivers.DeviceConfig{{HostPath: "/dev/gpu0", TaskPath: "/dev/gpu0", Permissions: "mrw"}, {HostPath: "/dev/ctl", TaskPath: "/dev/ctl", Permissions: "r"}}
	cfg.Mounts = []*drivers.MountConfig{{HostPath: "/opt/driver", TaskPath: "/usr/local/driver", Readonly: true}}
	cfg.DeviceEnv = map[string]string{"VISIBLE_DEVICES": "0", "MINE": "changed"}
	got, err = request(cfg, now)
	must.NoError(t, err)
	must.Eq(t, id, got.ID)
	must.Eq(t, []nodeapi.Device{{Host: "/dev/gpu0", Path: "/dev/gpu0", Access: "rw"}, {Host: "/dev/ctl", Path: "/dev/ctl", Access: "r"}}, got.Devices)
	must.Eq(t, []nodeapi.Mount{{Host: "/opt/driver", Path: "/usr/local/driver"}}, got.Mounts)
	must.Eq(t, map[string]string{"VISIBLE_DEVICES": "0", "MINE": "kept"}, got.Env)
}

func TestRequest_mapsATask(t *testing.T) {
	cfg := task(t, TaskConfig{
		Template: "python", Command: "python3", Args: []string{"-c", "print(1)"}, Env: map[string]string{"A": "from task"},
		Cwd: "/srv", User: "user", Hostname: "box", Profile: "strict", Deadline: "90s",
		QoS: "guaranteed",
		Limits: TaskLimits{
			CPUMillis: 500, PIDs: 64, TmpMB: 32, NoFile: 1024, DiskMB: 64, DiskInodes: 5000,
			IOReadBytes: 1 << 20, IOWriteBytes: 2 << 20, IOReadOps: 100, IOWriteOps: 200,
		},
	})
	got, err := request(cfg, now)
	must.NoError(t, err)
	want := nodeapi.CreateRequest{
		ID: got.ID, Template: "python", Hostname: "box",
		Env:  map[string]string{"NOMAD_TASK_NAME": "main", "A": "from task"},
		User: "user", Cwd: "/srv", Profile: "strict", QoS: "guaranteed",
		Limits: nodeapi.Limits{
			CPUMillis: 500, CPUWeight: 4 * 39, MemoryBytes: 256 << 20, PIDs: 64, TmpBytes: 32 << 20, NoFile: 1024,
			DiskBytes: 64 << 20, DiskInodes: 5000, IOReadBytes: 1 << 20, IOWriteBytes: 2 << 20, IOReadOps: 100, IOWriteOps: 200,
		},
		Deadline: now.Add(90 * time.Second),
		Main:     &guest.Start{Argv: []string{"python3", "-c", "print(1)"}},
		Logs:     &nodeapi.LogTargets{Stdout: cfg.StdoutPath, Stderr: cfg.StderrPath},
		Owner:    nodeapi.Owner{Kind: "nomad", AllocID: "alloc-1", TaskID: "alloc-1/main/0badcafe", Folder: cfg.AllocDir},
	}
	must.Eq(t, want, got, must.Cmp(cmp.AllowUnexported()))
	again, err := request(cfg, now)
	must.NoError(t, err)
	must.Eq(t, got.ID, again.ID, must.Sprint("the same task has the same sandbox"))
	_, err = api.ParseSandboxID(got.ID.String())
	must.NoError(t, err)
}

func TestRequest_defaults(t *testing.T) {
	cfg := task(t, TaskConfig{})
	cfg.User = "www"
	cfg.StdoutPath, cfg.StderrPath = os.DevNull, os.DevNull // what Nomad sends for logs { disabled = true }
	got, err := request(cfg, now)
	must.NoError(t, err)
	must.Eq(t, DefaultTemplate, got.Template)
	must.Eq(t, "www", got.User)
	must.Nil(t, got.Main)
	must.Nil(t, got.Logs)
	must.True(t, got.Deadline.IsZero())
}

func TestRequest_namesTheFieldAtFault(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config TaskConfig
		want   string
	}{
		{"args alone", TaskConfig{Args: []string{"x"}}, "args given without command"},
		{"NUL in command", TaskConfig{Command: "a\x00b"}, "command contains a NUL"},
		{"NUL in args", TaskConfig{Command: "a", Args: []string{"b", "\x00"}}, "args[1]"},
		{"relative cwd", TaskConfig{Cwd: "srv"}, `cwd "srv" is not an absolute path`},
		{"negative pids", TaskConfig{Limits: TaskLimits{PIDs: -1}}, "limits.pids -1"},
		{"absurd cpu", TaskConfig{Limits: TaskLimits{CPUMillis: 1 << 40}}, "limits.cpu_millis"},
		{"absurd tmp", TaskConfig{Limits: TaskLimits{TmpMB: 1 << 62}}, "limits.tmp_mb"},
		{"negative nofile", TaskConfig{Limits: TaskLimits{NoFile: -5}}, "limits.nofile -5"},
		{"deadline of no unit", TaskConfig{Deadline: "90"}, "deadline"},
		{"deadline in the past", TaskConfig{Deadline: "-1s"}, "deadline -1s is not above zero"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := request(task(t, tc.config), now)
			must.ErrorContains(t, err, tc.want)
			must.ErrorContains(t, err, "task config")
		})
	}
}

func TestRequest_dispatchPayloadWins(t *testing.T) {
	want := nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: "base", Limits: nodeapi.Limits{MemoryBytes: 200 << 20, CPUWeight: 7},
		Env: map[string]string{"K": "${v}\n\"}"},
	}
	cfg := task(t, TaskConfig{Template: "other", Command: "ignored"})
	writeDispatch(t, cfg, want)
	got, err := request(cfg, now)
	must.NoError(t, err)
	want.Owner = nodeapi.Owner{Kind: "control", AllocID: cfg.AllocID, TaskID: cfg.ID, Folder: cfg.AllocDir}
	must.Eq(t, want, got)
}

// Whoever may dispatch a job must not thereby write into the host's files, or take more than Nomad has reserved.
func TestRequest_payloadStaysWithinTheTask(t *testing.T) {
	cfg := task(t, TaskConfig{})
	req := nodeapi.CreateRequest{
		ID: api.NewSandboxID(), Template: "base", Logs: &nodeapi.LogTargets{Stdout: "/etc/cron.d/x"},
		Main: &guest.Start{Argv: []string{"true"}}, Owner: nodeapi.Owner{Kind: "test", AllocID: "x", TaskID: "y"},
	}
	writeDispatch(t, cfg, req)
	got, err := request(cfg, now)
	must.NoError(t, err)
	must.Eq(t, &nodeapi.LogTargets{Stdout: cfg.StdoutPath, Stderr: cfg.StderrPath}, got.Logs)
	must.Eq(t, nodeapi.Owner{Kind: "control", AllocID: cfg.AllocID, TaskID: cfg.ID, Folder: cfg.AllocDir}, got.Owner)
	must.Eq(t, 256<<20, got.Limits.MemoryBytes)
	must.Positive(t, got.Limits.CPUWeight)

	req.Limits.MemoryBytes = 257 << 20
	writeDispatch(t, cfg, req)
	_, err = request(cfg, now)
	must.ErrorContains(t, err, "limits.memory_bytes")

	req.Limits.MemoryBytes, req.Main = 1<<20, nil
	writeDispatch(t, cfg, req)
	got, err = request(cfg, now)
	must.NoError(t, err)
	must.Nil(t, got.Logs)
}

func TestRequest_refusesAnOddPayload(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(t *testing.T, file string)
		want string
	}{
		{"link", func(t *testing.T, file string) { must.NoError(t, os.Symlink("/etc/passwd", file)) }, "too many levels"},
		{"folder", func(t *testing.T, file string) { must.NoError(t, os.Mkdir(file, 0o755)) }, "not a regular file"},
		{"not JSON", func(t *testing.T, file string) { write(t, file, "{") }, "unexpected end"},
		{"no id", func(t *testing.T, file string) { write(t, file, "{}") }, "sandbox id"},
		{"too large", func(t *testing.T, file string) { write(t, file, strings.Repeat(" ", MaxDispatchBytes+1)) }, "more than 65536 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := task(t, TaskConfig{})
			must.NoError(t, os.MkdirAll(cfg.TaskDir().LocalDir, 0o755))
			tc.make(t, filepath.Join(cfg.TaskDir().LocalDir, DispatchFile))
			_, err := request(cfg, now)
			must.ErrorContains(t, err, tc.want)
		})
	}
}

func writeDispatch(t *testing.T, cfg *drivers.TaskConfig, req nodeapi.CreateRequest) {
	t.Helper()
	b, err := json.Marshal(req)
	must.NoError(t, err)
	must.NoError(t, os.MkdirAll(cfg.TaskDir().LocalDir, 0o755))
	write(t, filepath.Join(cfg.TaskDir().LocalDir, DispatchFile), string(b))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
}

func TestCPUWeight_coversTheRange(t *testing.T) {
	for _, tc := range []struct{ shares, want int64 }{{0, 0}, {-1, 0}, {1, 1}, {2, 1}, {1024, 39}, {262144, 10000}, {1 << 40, 10000}} {
		must.Eq(t, tc.want, cpuWeight(tc.shares), must.Sprintf("%d shares", tc.shares))
	}
}

func TestSignalNumber(t *testing.T) {
	for name, want := range map[string]int{"SIGUSR1": 10, "usr1": 10, "SIGKILL": 9, "": 15} {
		got, err := signalNumber(name, 15)
		must.NoError(t, err)
		must.Eq(t, want, int(got))
	}
	_, err := signalNumber("SIGNONE", 15)
	must.ErrorContains(t, err, `signal "SIGNONE" is unknown`)
}

func TestRequest_publishesTheGroupsPortsThatTheTaskNames(t *testing.T) {
	cfg := task(t, TaskConfig{Command: "true", Ports: []string{"http", "same"}})
	cfg.Resources.Ports = &structs.AllocatedPorts{
		{Label: "http", Value: 23456, To: 80, HostIP: "192.0.2.1"}, {Label: "same", Value: 24000, To: -1}, {Label: "other", Value: 25000},
	}
	req, err := request(cfg, now)
	must.NoError(t, err)
	host := netip.MustParseAddr("192.0.2.1")
	must.Eq(t, []nodeapi.PublishedPort{
		{Proto: "tcp", Port: 80, Address: host, NodePort: 23456}, {Proto: "udp", Port: 80, Address: host, NodePort: 23456},
		{Proto: "tcp", Port: 24000, NodePort: 24000}, {Proto: "udp", Port: 24000, NodePort: 24000},
	}, req.Publish)
	cfg = task(t, TaskConfig{Command: "true", Ports: []string{"none"}})
	_, err = request(cfg, now)
	must.ErrorContains(t, err, `ports[0]: "none": the group's network has no ports`)
	// What the control service dispatches names no port of the machine.
	dispatched := task(t, TaskConfig{})
	writeDispatch(t, dispatched, nodeapi.CreateRequest{ID: "i5hdo4l91d6ciyo6t6jja", Template: "base", Publish: []nodeapi.PublishedPort{{Proto: "tcp", Port: 1, NodePort: 22}}})
	req, err = request(dispatched, now)
	must.NoError(t, err)
	must.SliceEmpty(t, req.Publish)
}

func TestRequest_portsAreInTheGroupsNamespace(t *testing.T) {
	cfg := task(t, TaskConfig{Command: "true", Ports: []string{"http", "same", "alias"}})
	cfg.NetworkIsolation = &drivers.NetworkIsolationSpec{Mode: drivers.NetIsolationModeGroup, Path: "/var/run/netns/alloc-1"}
	cfg.Resources.Ports = &structs.AllocatedPorts{
		{Label: "http", Value: 23456, To: 80, HostIP: "192.0.2.1"}, {Label: "same", Value: 24000}, {Label: "alias", Value: 25000, To: 80, HostIP: "192.0.2.1"},
	}
	req, err := request(cfg, now)
	must.NoError(t, err)
	must.EqOp(t, "/var/run/netns/alloc-1", req.PublishIn)
	must.Eq(t, []nodeapi.PublishedPort{
		{Proto: "tcp", Port: 80, NodePort: 80}, {Proto: "udp", Port: 80, NodePort: 80},
		{Proto: "tcp", Port: 24000, NodePort: 24000}, {Proto: "udp", Port: 24000, NodePort: 24000},
	}, req.Publish)

	cfg = task(t, TaskConfig{}) // one that names no port: the node checks the namespace all the same
	cfg.NetworkIsolation = &drivers.NetworkIsolationSpec{Mode: drivers.NetIsolationModeGroup, Path: "/var/run/netns/alloc-1"}
	req, err = request(cfg, now)
	must.NoError(t, err)
	must.EqOp(t, "/var/run/netns/alloc-1", req.PublishIn)
	must.SliceEmpty(t, req.Publish)
	cfg.NetworkIsolation = &drivers.NetworkIsolationSpec{Mode: drivers.NetIsolationModeHost}
	req, err = request(cfg, now)
	must.NoError(t, err)
	must.EqOp(t, "", req.PublishIn)
}
