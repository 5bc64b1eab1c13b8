package sandbox

import (
	"os"
	"testing"
	"time"
)

const fuzzID = "iabcdefghijklmnopqrst"

func FuzzParseExitRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"sandbox_id":"` + fuzzID + `","reason":"main_exited","code":3,"ended_at":"2026-11-23T10:00:00.5Z"}` + "\n"))
	f.Add([]byte(`{"version":1,"sandbox_id":"` + fuzzID + `","reason":"shutdown","code":-1,"ended_at":""}` + "\n"))
	f.Add([]byte(`{"version":1`))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseExitRecord(b, Ref{ID: fuzzID})
		if (r == nil) == (err == nil) {
			t.Fatalf("record %v with error %v", r, err)
		}
		if r != nil && (r.Code < 0 || r.Code > 255 || r.Signal < 0 || r.Signal > 64 || r.SandboxID != fuzzID) {
			t.Fatalf("believed %+v", r)
		}
	})
}

func TestParseExitRecord_takesTheFirstWholeLine(t *testing.T) {
	line := `{"version":1,"sandbox_id":"` + fuzzID + `","reason":"main_exited","code":3,"ended_at":"2026-11-23T10:00:00.5Z"}`
	for _, tt := range []struct {
		name, text string
		want       int // code, or -1 for an error
	}{
		{"whole", line + "\n", 3},
		{"more behind it", line + "\n{\"version\":9}\n", 3},
		{"cut off", line, -1},
		{"empty", "", -1},
		{"of another", `{"version":1,"sandbox_id":"x","reason":"main_exited","code":3,"ended_at":"2026-11-23T10:00:00Z"}` + "\n", -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := -1
			if r, err := parseExitRecord([]byte(tt.text), Ref{ID: fuzzID}); err == nil {
				got = r.Code
			}
			if got != tt.want {
				t.Errorf("code %d, want %d", got, tt.want)
			}
		})
	}
}

// TestFork_namesTheStepThatFailed runs the forked child into an error before its exec.
func TestFork_namesTheStepThatFailed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	f, err := os.Open("/etc/passwd") // which cannot be executed
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := forkInit(f, 100000, nil, -1, nil, Capabilities)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{child: c}
	for _, name := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(procPath(c.pid, name), []byte("0 100000 65536\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.boot.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if got := b.whyDied(os.ErrInvalid).Error(); got != "child: exec init: permission denied" {
		t.Errorf("error is %q", got)
	}
	if err := b.undo(); err != nil {
		t.Error(err)
	}
}

// Without a program the child has a user and a control group namespace of its own and no other, and ends with the node.
func TestFork_standsForTwoNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c, err := forkInit(nil, 100000, nil, -1, nil, Capabilities)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"uid_map", "gid_map"} {
		if err := os.WriteFile(procPath(c.pid, name), []byte("0 100000 65536\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.boot.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	if err := c.awaitStand(); err != nil {
		t.Fatal(err)
	}
	for name, own := range map[string]bool{"user": true, "cgroup": true, "pid": false, "mnt": false, "net": false, "ipc": false, "uts": false} {
		theirs, err := os.Readlink(procPath(c.pid, "ns/"+name))
		if err != nil {
			t.Fatal(err)
		}
		ours, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if (theirs != ours) != own {
			t.Errorf("its %s namespace is %s, the node's %s", name, theirs, ours)
		}
	}
	if err := c.boot.Close(); err != nil { // as the node's end does
		t.Fatal(err)
	}
	if err := awaitEnd(c.pidfd); err != nil {
		t.Error(err)
	}
	b := &builder{child: c}
	if err := b.undo(); err != nil {
		t.Error(err)
	}
}

// While it waits for its ids, what was forked holds no descriptor of the node but what it needs: else it keeps connections of a
// node that died open, and, together with another that was forked at that moment, for ever.
func TestFork_waitsWithoutTheNodesDescriptors(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	for range 50 { // descriptors of the node, below and above those of the fork
		if _, w, err := os.Pipe(); err != nil {
			t.Fatal(err)
		} else {
			defer w.Close()
		}
	}
	c, err := forkInit(exe, 100000, []*os.File{exe}, -1, nil, Capabilities)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{child: c}
	open := func() int {
		fds, err := os.ReadDir(procPath(c.pid, "fd"))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	for end := time.Now().Add(10 * time.Second); open() != 5 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := open(); n != 5 {
		t.Errorf("it has %d descriptors open, 5 are needed", n)
	}
	if err := b.undo(); err != nil {
		t.Error(err)
	}
}
