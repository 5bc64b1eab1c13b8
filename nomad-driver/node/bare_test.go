package node

import (
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// A copy of a sandbox in which nothing ran is made anew, from its files. Whatever else there was of it is restored.
func TestReal_copiesAreRestoredForWhatIsNotInFiles(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	d.importPython()
	const libc = `import ctypes; libc = ctypes.CDLL(None, use_errno=True); `
	for _, tc := range []struct {
		name, has, is string
		restored      bool
	}{
		{"files alone", "true", "true", false},
		{"a process that has ended", "(exit 3); true", "true", false},
		{"a process", "sleep 1000 > /dev/null 2>&1 & echo $! > ~/pid", "kill -0 $(cat ~/pid)", true},
		{"a file in /tmp", "echo in memory > /tmp/file", "grep -qx 'in memory' /tmp/file", true},
		{"a file in /dev/shm", "echo in memory > /dev/shm/file", "grep -qx 'in memory' /dev/shm/file", true},
		{"a link in /dev", "ln -s null /dev/mine 2>/dev/null || echo memory > /tmp/instead", "[ -c /dev/mine -o -e /tmp/instead ]", true},
		{"shared memory of System V", `python3 -c "` + libc + `assert libc.shmget(7, 4096, 0o1600) >= 0"`, `python3 -c "` + libc + `assert libc.shmget(7, 4096, 0) >= 0"`, true},
		{"a semaphore of System V", `python3 -c "` + libc + `assert libc.semget(7, 1, 0o1600) >= 0"`, `python3 -c "` + libc + `assert libc.semget(7, 1, 0) >= 0"`, true},
		{"a queue of System V", `python3 -c "` + libc + `assert libc.msgget(7, 0o1600) >= 0"`, `python3 -c "` + libc + `assert libc.msgget(7, 0) >= 0"`, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sb := d.create(func(r *nodeapi.CreateRequest) {
				r.Template, r.Env = "python", map[string]string{"KEPT": "from the first"}
			})
			_, code := d.exec(sb, "bash", "-c", "echo mine > ~/file; ln ~/file ~/same; ln -s file ~/link; mkdir -m 700 ~/dir; head -c 300000 /dev/urandom > ~/dir/data; "+tc.has)
			must.Eq(t, 0, code)
			const look = "stat -c '%a %u %h %Y' ~/dir ~/file ~/link; cat ~/link; echo $KEPT; id -un; cksum ~/dir/data"
			want, _ := d.exec(sb, "bash", "-c", look)
			machine, _ := d.exec(sb, "cat", "/etc/machine-id")
			id := api.NewSnapshotID()
			_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
			must.NoError(t, err)
			copied, err := d.client.Create(t.Context(), restoreRequest(id, "a"))
			must.NoError(t, err)
			must.Eq(t, tc.restored, slices.ContainsFunc(copied.Steps, func(s guest.Step) bool { return s.Name == "criu" }), must.Sprint(copied.Steps))
			got, _ := d.exec(copied, "bash", "-c", look)
			must.Eq(t, want, got)
			_, code = d.exec(copied, "bash", "-c", tc.is)
			must.Eq(t, 0, code)
			name, _ := d.exec(copied, "bash", "-c", "cat /etc/machine-id; hostname")
			own, host, _ := strings.Cut(name, "\n")
			must.Eq(t, string(copied.ID)+"\n", host)
			must.NotEq(t, strings.TrimSpace(machine), own)
			// It can be paused, and copied again.
			_, err = d.client.Pause(t.Context(), copied.ID, pauseTo(nodeapi.DepthCheckpointed))
			must.NoError(t, err)
			_, err = d.client.Resume(t.Context(), copied.ID, nodeapi.ResumeRequest{})
			must.NoError(t, err)
			_, code = d.exec(copied, "bash", "-c", tc.is)
			must.Eq(t, 0, code)
			again := api.NewSnapshotID()
			_, err = d.client.Snapshot(t.Context(), copied.ID, nodeapi.SnapshotRequest{ID: again, Tenant: "a"})
			must.NoError(t, err)
			third, err := d.client.Create(t.Context(), restoreRequest(again, "a"))
			must.NoError(t, err)
			got, _ = d.exec(third, "bash", "-c", look)
			must.Eq(t, want, got)
			_, code = d.exec(third, "bash", "-c", tc.is)
			must.Eq(t, 0, code)
		})
	}
}
