package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	rpc "connectrpc.com/connect"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem/filesystemconnect"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox/sandboxtest"
)

// onThread runs f on a thread that ends with it.
func onThread(f func()) { osthread.ThrowAway(f) }

// 50 rounds of pause and resume, every other one through the disk, with a file that grows and one that a process of it holds open:
// no byte is lost, and none is there twice.
func TestReal_fiftyRoundsOfPauseAndResume(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	want := sha256.New()
	for round := range 50 {
		piece := make([]byte, 8<<10)
		_, _ = rand.Read(piece)
		_, _ = want.Write(piece)
		exit, err := d.client.Run(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "cat >> /home/user/grows"}, Stdin: true}}, bytes.NewReader(piece), io.Discard, io.Discard)
		must.NoError(t, err)
		must.Eq(t, 0, exit.Code)
		depth := nodeapi.DepthCheckpointed
		if round%2 == 1 {
			depth = nodeapi.DepthFrozen
		}
		_, err = d.client.Pause(t.Context(), sb.ID, pauseTo(depth))
		must.NoError(t, err)
		_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
		must.NoError(t, err)
		r, _, err := d.client.ReadFile(t.Context(), sb.ID, "/home/user/grows", nodeapi.FileOptions{})
		must.NoError(t, err)
		got := sha256.New()
		n, err := io.Copy(got, r)
		must.NoError(t, err)
		must.NoError(t, r.Close())
		must.Eq(t, int64(round+1)*8<<10, n)
		must.Eq(t, want.Sum(nil), got.Sum(nil), must.Sprintf("round %d", round))
	}
	d.counts(sb)
}

// Sandboxes are paused, resumed and copied while others are: what is started for the one holds nothing of another, for however short a time.
func TestReal_pausesAndCopiesSideBySide(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	const boxes, rounds = 4, 32
	all := make([]nodeapi.Sandbox, boxes)
	for i := range all {
		all[i] = d.create()
		d.startCounter(all[i])
	}
	copies := make([][]nodeapi.Sandbox, boxes)
	errs := make([]error, boxes)
	var wg sync.WaitGroup
	for i, sb := range all {
		wg.Go(func() {
			for round := 0; round < rounds && errs[i] == nil; round++ {
				if round%8 == 7 {
					var c nodeapi.Sandbox
					c, errs[i] = d.copied(t.Context(), sb)
					copies[i] = append(copies[i], c)
					continue
				}
				if _, errs[i] = d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed)); errs[i] == nil {
					_, errs[i] = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
				}
			}
		})
	}
	wg.Wait()
	for i, sb := range all {
		must.NoError(t, errs[i])
		d.counts(sb)
		for _, c := range copies[i] {
			d.counts(c)
		}
	}
}

// copied returns a copy of a sandbox.
func (d *daemon) copied(ctx context.Context, sb nodeapi.Sandbox) (nodeapi.Sandbox, error) {
	id := api.NewSnapshotID()
	if _, err := d.client.Snapshot(ctx, sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"}); err != nil {
		return nodeapi.Sandbox{}, err
	}
	return d.client.Create(ctx, restoreRequest(id, "a"))
}

// Ten copies made at the same time are ten machines: ids, names and random numbers are each one's own.
func TestReal_forksAreMachinesOfTheirOwn(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	id := api.NewSnapshotID()
	_, err := d.client.Snapshot(t.Context(), sb.ID, nodeapi.SnapshotRequest{ID: id, Tenant: "a"})
	must.NoError(t, err)
	const forks = 10
	copies := make([]nodeapi.Sandbox, forks)
	errs := make([]error, forks)
	var wg sync.WaitGroup
	for i := range forks {
		wg.Go(func() { copies[i], errs[i] = d.client.Create(t.Context(), restoreRequest(id, "a")) })
	}
	wg.Wait()
	seen := map[string]bool{}
	for i, c := range copies {
		must.NoError(t, errs[i])
		out, code := d.exec(c, "bash", "-c", "cat /etc/machine-id; hostname; cat /proc/sys/kernel/random/uuid")
		must.Eq(t, 0, code)
		lines := strings.Fields(out)
		must.Len(t, 3, lines)
		must.Eq(t, string(c.ID), lines[1])
		for _, l := range lines {
			must.False(t, seen[l], must.Sprintf("%s is there twice", l))
			seen[l] = true
		}
		d.counts(c)
	}
	d.counts(sb)
}

// filesystem is a client of envd's service of files.
func (d *daemon) filesystem(sb nodeapi.Sandbox) filesystemconnect.FilesystemClient {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.dir+"/r/node.sock")
	}}
	d.t.Cleanup(transport.CloseIdleConnections)
	return filesystemconnect.NewFilesystemClient(&http.Client{Transport: transport}, "http://node/v1/sandboxes/"+string(sb.ID)+"/envd")
}

// A pause in the middle of everything: what the node was doing for a client ends, what was doing inside goes on.
func TestReal_pauseInTheMiddle(t *testing.T) {
	d := startDaemon(t, "-criu", sandboxtest.CRIU(t))
	sb := d.create()
	d.startCounter(sb)
	exec, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "-c", "while read -r l; do echo \"got $l\"; done"}, Stdin: true}})
	must.NoError(t, err)
	defer exec.Close()
	say(t, exec, "one", "got one")
	terminal, err := d.client.Exec(t.Context(), sb.ID, nodeapi.ExecRequest{Start: guest.Start{Argv: []string{"bash", "--norc"}, TTY: true, Stdin: true}})
	must.NoError(t, err)
	defer terminal.Close()
	say(t, terminal, "x=$((40+2)); echo is-$x", "is-42")
	files := d.filesystem(sb)
	watch, err := files.WatchDir(t.Context(), rpc.NewRequest(&wire.WatchDirRequest{Path: "/home/user"}))
	must.NoError(t, err)
	defer watch.Close()
	must.True(t, watch.Receive(), must.Sprint(watch.Err()))
	polled, err := files.CreateWatcher(t.Context(), rpc.NewRequest(&wire.CreateWatcherRequest{Path: "/home/user"}))
	must.NoError(t, err)
	pr, pw := io.Pipe()
	uploaded := make(chan error, 1)
	go func() {
		_, err := d.client.WriteFile(t.Context(), sb.ID, "/home/user/upload", pr, nodeapi.FileOptions{User: "user"})
		uploaded <- err
	}()
	_, err = pw.Write(bytes.Repeat([]byte("u"), 1<<20)) // its half is inside
	must.NoError(t, err)

	paused, err := d.client.Pause(t.Context(), sb.ID, pauseTo(nodeapi.DepthCheckpointed))
	must.NoError(t, err)
	must.Eq(t, nodeapi.DepthCheckpointed, paused.Pause.Depth)
	must.NoError(t, pw.Close())
	select {
	case err = <-uploaded:
	case <-time.After(time.Minute):
		t.Fatal("the upload hangs")
	}
	whole := err == nil
	for watch.Receive() { // what was seen before the pause
	}
	must.Error(t, watch.Err(), must.Sprint("a client is told that its watch has ended"))
	for what, s := range map[string]*nodeapi.Stream{"exec": exec, "terminal": terminal} {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				if _, err := s.Recv(); err != nil {
					return
				}
			}
		}()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("the conversation of %s hangs", what)
		}
	}

	_, err = d.client.Resume(t.Context(), sb.ID, nodeapi.ResumeRequest{})
	must.NoError(t, err)
	d.counts(sb)
	_, err = files.GetWatcherEvents(t.Context(), rpc.NewRequest(&wire.GetWatcherEventsRequest{WatcherId: polled.Msg.GetWatcherId()}))
	must.Eq(t, rpc.CodeNotFound, rpc.CodeOf(err), must.Sprint("a watcher that saw nothing of the pause tells of nothing"))
	seen, err := files.WatchDir(t.Context(), rpc.NewRequest(&wire.WatchDirRequest{Path: "/home/user"}))
	must.NoError(t, err)
	must.True(t, seen.Receive(), must.Sprint(seen.Err()))
	must.True(t, seen.Receive(), must.Sprint("the counter writes"))
	must.NoError(t, seen.Close())
	again, err := d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: exec.Process.PID}})
	must.NoError(t, err)
	defer again.Close()
	say(t, again, "two", "got two")
	shell, err := d.client.Attach(t.Context(), sb.ID, nodeapi.AttachRequest{Attach: guest.Attach{PID: terminal.Process.PID}})
	must.NoError(t, err)
	defer shell.Close()
	say(t, shell, "echo still-$x", "still-42")
	// An upload is there as a whole or not at all.
	fi, err := d.client.Stat(t.Context(), sb.ID, "/home/user/upload", nodeapi.FileOptions{})
	if whole {
		must.NoError(t, err)
		must.Eq(t, 1<<20, fi.Size)
	} else {
		must.True(t, api.IsNotFound(err), must.Sprintf("half of an upload shows: %v", err))
	}
}
