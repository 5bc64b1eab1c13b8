package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// A disk that is full stops changes before they are made, leaves room for what ends things, loses nothing that was acknowledged, and
// everything goes on once there is room.
func TestLog_onAFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("audit-test", disk, "tmpfs", 0, "size=8m"); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("mounting a small file system needs root")
		}
		must.NoError(t, err)
	}
	t.Cleanup(func() { must.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	dir := filepath.Join(disk, "audit")
	const reserve = 64 << 10
	l := open(t, Config{Dir: dir, Reserve: reserve, SegmentBytes: 256 << 10})
	fill(t, l, 20)
	ballast := filepath.Join(disk, "ballast")
	fillDisk(t, ballast)

	stored := 20
	for {
		ticket, err := l.Admit(false)
		if err != nil {
			must.ErrorIs(t, err, ErrUnavailable)
			must.ErrorIs(t, err, unix.ENOSPC)
			break
		}
		must.NoError(t, ticket.Commit(event(stored)), must.Sprint("what was admitted fits"))
		stored++
		must.Less(t, 100_000, stored, must.Sprint("the disk is full at last"))
	}
	l.Note(event(0)) // counted, not stored
	vital := 0
	for {
		ticket, err := l.Admit(true)
		if err != nil {
			break
		}
		must.NoError(t, ticket.Commit(event(stored)))
		stored++
		vital++
	}
	must.Greater(t, 50, vital, must.Sprint("events of ends in the reserve"))
	got, _, err := l.Query(t.Context(), Query{}, Page{Limit: 5})
	must.NoError(t, err)
	must.Len(t, 5, got, must.Sprint("reading goes on"))
	must.Nil(t, verify(t, dir, VerifyOptions{}).Bad)

	must.NoError(t, os.Remove(ballast))
	must.NoError(t, l.Append(event(stored)))
	stored++
	l.noteDropped()
	until(t, "the log tells what was not stored", func() bool { i, _ := l.Last(); return i == uint64(stored+1) })
	got, _, err = l.Query(t.Context(), Query{Action: "audit.dropped"}, Page{})
	must.NoError(t, err)
	must.Eq(t, "1", got[0].Details["events"])
	must.NoError(t, l.Close())
	r := verify(t, dir, VerifyOptions{})
	must.Nil(t, r.Bad)
	must.Eq(t, uint64(stored+1), r.SignedTo)
	t.Logf("%d events in all, %d of them in the reserve", stored, vital)
}

// fillDisk writes until nothing fits any more.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must.NoError(t, err)
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(bytes.Repeat([]byte("x"), size)); err != nil {
			must.ErrorIs(t, err, unix.ENOSPC)
			size /= 2
		}
	}
}
