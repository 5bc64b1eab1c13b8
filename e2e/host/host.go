// Package host looks at what a node leaves on its machine: mounts, control groups, processes, folders, and its part of the network.
//
// It owns the looking. It never removes anything.
package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Node says where a node keeps its sandboxes.
type Node struct {
	StateDir     string
	RunDir       string
	CgroupParent string
}

// Left lists what belongs to sandboxes of the node and is there now.
func (n Node) Left(t testing.TB) []string {
	t.Helper()
	var left []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.StateDir) || strings.Contains(line, n.RunDir) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{
		filepath.Join("/sys/fs/cgroup", n.CgroupParent, "*"),
		filepath.Join("/sys/fs/cgroup/*", n.CgroupParent, "*"),
		filepath.Join(n.StateDir, "sandboxes", "*"),
		filepath.Join(n.RunDir, "sandboxes", "*"),
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
				left = append(left, "folder "+path)
			}
		}
	}
	return append(left, n.processes(t)...)
}

// processes finds those in a control group of the node, zombies included.
func (n Node) processes(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), "/"+n.CgroupParent+"/") {
			continue // another's, or ended meanwhile
		}
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		left = append(left, fmt.Sprintf("process %s %s", filepath.Base(filepath.Dir(file)), strings.TrimSpace(string(comm))))
	}
	return left
}

// NothingLeft fails the test where something of a sandbox is there that does not go away by itself: the kernel and a node's background
// work may take a moment.
func (n Node) NothingLeft(t testing.TB) {
	t.Helper()
	nothing(t, func() []string { return n.Left(t) })
}

// NothingLeftOfNode is NothingLeft for a node that has ended: it looks at the network too.
func (n Node) NothingLeftOfNode(t testing.TB) {
	t.Helper()
	nothing(t, func() []string { return append(n.Left(t), n.LeftOfNetwork(t)...) })
}

func nothing(t testing.TB, look func() []string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if left = look(); len(left) == 0 {
			return
		}
	}
	t.Errorf("left on the host:\n  %s", strings.Join(left, "\n  "))
}
