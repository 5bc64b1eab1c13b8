package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// asking is whether the owner of a stopped sandbox will ask how it ended.
type asking int

const (
	nobodyKnows asking = iota
	mayAsk
	asksNever
)

// ownerAsks tells it from the owner's folder. A Nomad client asks for a task, after however long a time in which it did not run, until it
// has collected the allocation; then it removes the allocation's folder, and what it knew of its tasks right after. The request that
// removes the record (DestroyTask) is made once, and is lost where the plugin is killed at that moment. Where the folder above
// is not there either, Nomad's data may only be somewhere else now, or not mounted: that says nothing.
func ownerAsks(folder string) asking {
	if folder == "" {
		return nobodyKnows
	}
	_, err := os.Lstat(folder)
	if err == nil {
		return mayAsk
	}
	if _, above := os.Stat(filepath.Dir(folder)); above != nil || !errors.Is(err, fs.ErrNotExist) {
		return nobodyKnows
	}
	return asksNever
}

// endedMark is the file in the owner's folder that says that a sandbox was there and is gone. It goes with the folder. Only a sandbox of the control service has
// one: the id of a job file's task is another in each run.
func endedMark(o nodeapi.Owner, id api.SandboxID) string {
	if o.Kind != nodeapi.OwnerControl || o.Folder == "" {
		return ""
	}
	return filepath.Join(o.Folder, ".soulbox-"+string(id)+".ended")
}

// markEnded keeps a sandbox from being made again for the same owner after its record is gone. A Nomad client that was killed before it had noted the start of a task
// starts it again, also where the sandbox was used and ended meanwhile: its owner would find another one under the id, and new.
func markEnded(o nodeapi.Owner, id api.SandboxID) error {
	mark := endedMark(o, id)
	if mark == "" || ownerAsks(o.Folder) != mayAsk {
		return nil
	}
	fd, err := unix.Open(mark, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err == unix.ENOENT {
		return nil // the folder went meanwhile
	}
	if err != nil {
		return fmt.Errorf("mark of the end of %s: %w", id, &os.PathError{Op: "open", Path: mark, Err: err})
	}
	return unix.Close(fd)
}

// checkEnded refuses a sandbox that was there for its owner, and is gone.
func checkEnded(o nodeapi.Owner, id api.SandboxID) error {
	mark := endedMark(o, id)
	if mark == "" {
		return nil
	}
	if _, err := os.Lstat(mark); err == nil {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "sandbox %s has ended; it is not begun again by allocation %s", id, o.AllocID)
	}
	return nil
}
