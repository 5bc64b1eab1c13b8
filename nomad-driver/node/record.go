package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

// recordVersion is the version of record that this code writes. It reads every version from 1 on.
const recordVersion = 1

const (
	maxRecordBytes = 4 << 20
	recordSuffix   = ".json"
	tempPrefix     = ".tmp-"
)

// record is what a node keeps on disk of one sandbox: what it takes to find it again and to answer for it.
type record struct {
	Version int             `json:"version"`
	Sandbox nodeapi.Sandbox `json:"sandbox"`
	// Request is the SHA-256 of the create request, by which a repeated one is told from another with the same id. The
	// request itself is not kept, only what envd answers with and asks for. The file is root's alone.
	Request string              `json:"request"`
	Token   string              `json:"access_token,omitempty"`
	Env     map[string]string   `json:"env,omitempty"`
	Cwd     string              `json:"cwd,omitempty"`
	IDBase  uint32              `json:"id_base"`
	Ref     sandbox.Ref         `json:"ref"`
	Logs    *nodeapi.LogTargets `json:"logs,omitempty"`
	Stop    *stopIntent         `json:"stop,omitempty"`
	// Deleting tells that the record goes once the sandbox has ended. Only of a delete that the kernel holds up.
	Deleting bool             `json:"deleting,omitempty"`
	Network  *nodeapi.Network `json:"network,omitempty"`
	Slot     *network.Ref     `json:"network_slot,omitempty"`

	Carried     uint64                  `json:"carried_bytes,omitempty"` // of its network quota, by links that it had before
	Published   []nodeapi.PublishedPort `json:"published,omitempty"`
	PublishedIn string                  `json:"published_in,omitempty"` // the network namespace that these are in; empty: the node's own
	Pause       *pauseRecord            `json:"pause,omitempty"`        // where paused
	Claim       string                  `json:"claim,omitempty"`        // SHA-256 of the request that claimed it, where it was made warm
	Waking      bool                    `json:"waking,omitempty"`       // restored, and its PID 1 not told yet
	Released    bool                    `json:"released,omitempty"`     // nothing of it is left on the machine
}

// stopIntent is a stop that was asked for and is not finished.
type stopIntent struct {
	Reason string    `json:"reason"`
	Signal int       `json:"signal,omitempty"`
	KillAt time.Time `json:"kill_at"`
}

// decodeRecord reads a record and checks what the rest of the node relies on.
func decodeRecord(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.Version < 1 || r.Version > recordVersion {
		return nil, fmt.Errorf("version %d, this daemon reads 1 to %d", r.Version, recordVersion)
	}
	id, err := api.ParseSandboxID(string(r.Sandbox.ID))
	if err != nil {
		return nil, err
	}
	switch {
	case id != r.Sandbox.ID:
		return nil, fmt.Errorf("sandbox id %q has a suffix", r.Sandbox.ID)
	case r.Ref.ID != id && !r.Released:
		return nil, fmt.Errorf("sandbox %s refers to %q", id, r.Ref.ID)
	case (r.Sandbox.State == nodeapi.StatePaused) != (r.Pause != nil && r.Sandbox.Pause != nil):
		return nil, fmt.Errorf("sandbox %s is %s, and its pause is not", id, r.Sandbox.State)
	case (r.Pause != nil && r.Pause.Dump != nil) != (r.Sandbox.Pause != nil && r.Sandbox.Pause.Depth == nodeapi.DepthCheckpointed):
		return nil, fmt.Errorf("sandbox %s: its checkpoint and the depth of its pause disagree", id)
	case r.Sandbox.State == nodeapi.StatePaused:
	case r.Sandbox.State != nodeapi.StateRunning && r.Sandbox.State != nodeapi.StateStopping && r.Sandbox.State != nodeapi.StateStopped:
		return nil, fmt.Errorf("sandbox %s has state %q", id, r.Sandbox.State)
	case r.Sandbox.State == nodeapi.StateStopped && r.Sandbox.Exit == nil:
		return nil, fmt.Errorf("sandbox %s is stopped and has no exit", id)
	case r.Released && r.Sandbox.State != nodeapi.StateStopped:
		return nil, fmt.Errorf("sandbox %s is released and %s", id, r.Sandbox.State)
	}
	return &r, nil
}

// records is the folder of records, one file each. A write is atomic (another file takes the place), so that a daemon that is
// killed leaves the old or the new record; syncer makes it durable against a power cut soon after. See DESIGN.md.
type records struct {
	dir  string
	sync *syncer
}

func (r *records) path(id api.SandboxID) string {
	return filepath.Join(r.dir, string(id)+recordSuffix)
}

// temp is where a record is written before it takes its place, and where exchange keeps the one of before.
func (r *records) temp(id api.SandboxID) string {
	return filepath.Join(r.dir, tempPrefix+string(id))
}

// put writes a record. The caller sees to it that no other put or remove of the same id runs at the same time.
func (r *records) put(rec *record) error {
	rec.Version = recordVersion
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record of %s: %w", rec.Sandbox.ID, err)
	}
	path, temp := r.path(rec.Sandbox.ID), r.temp(rec.Sandbox.ID)
	if rec.endsWithMachine() {
		var first bool
		first, err = exchange(path, temp, append(b, '\n'))
		if first && err == nil && rec.Sandbox.Warm { // whoever claims it will wait: what he exchanges is made now
			err = os.WriteFile(temp, append(b, '\n'), 0o600)
		}
	} else {
		err = replace(path, temp, append(b, '\n'))
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("record of %s: %w", rec.Sandbox.ID, err)
	}
	r.sync.changed(path)
	return nil
}

// endsWithMachine reports whether a record is of nothing that is there after the machine has gone down: a sandbox that runs or is frozen, and whose
// processes are nowhere else.
func (r *record) endsWithMachine() bool {
	switch r.Sandbox.State {
	case nodeapi.StateRunning:
		return r.Pause == nil && !r.Waking
	case nodeapi.StatePaused:
		return r.Sandbox.Pause.Depth == nodeapi.DepthFrozen
	default:
		return false
	}
}

// replace puts a new file in the place of path. A power cut leaves the old bytes or the new ones.
func replace(path, temp string, b []byte) error {
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// exchange has path and temp change places, and keeps the older of the two for the next time. A kill leaves the old bytes or the new ones; a power cut may
// leave neither. Nothing is made or freed and no block is allocated then, so it takes a tenth of the time of replace, and does not wait for what others
// sync on the same file system. first says that there was nothing to exchange.
func exchange(path, temp string, b []byte) (first bool, err error) {
	fd, err := unix.Open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false, &os.PathError{Op: "open", Path: temp, Err: err}
	}
	f := os.NewFile(uintptr(fd), temp)
	_, err = f.Write(b)
	if err == nil {
		err = f.Truncate(int64(len(b))) // not to nothing first: ext4 would take that for a file that must be on disk when it is closed
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	switch err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err {
	case nil:
		return false, nil
	case unix.ENOENT, unix.EINVAL, unix.ENOSYS: // it is the first one, or the file system cannot
		return true, os.Rename(temp, path)
	default:
		return false, &os.LinkError{Op: "exchange", Old: temp, New: path, Err: err}
	}
}

// remove removes a record. One that is not there is no error.
func (r *records) remove(id api.SandboxID) error {
	for _, path := range []string{r.path(id), r.temp(id)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("record of %s: %w", id, err)
		}
	}
	r.sync.changed(r.dir)
	return nil
}

// load reads all records. Files that are no good are returned by name with the reason, and so are not lost silently;
// temporary files of a killed daemon are removed.
func (r *records) load() (good []*record, bad map[string]error, err error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("records: %w", err)
	}
	bad = map[string]error{}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(r.dir, name)
		if strings.HasPrefix(name, tempPrefix) {
			if err := os.Remove(path); err != nil {
				return nil, nil, fmt.Errorf("records: %w", err)
			}
			continue
		}
		id, ok := strings.CutSuffix(name, recordSuffix)
		if !ok {
			continue
		}
		rec, err := readRecord(path)
		if err == nil && string(rec.Sandbox.ID) != id {
			err = fmt.Errorf("is of sandbox %s", rec.Sandbox.ID)
		}
		if err != nil {
			bad[path] = err
			continue
		}
		good = append(good, rec)
	}
	return good, bad, nil
}

func readRecord(path string) (*record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxRecordBytes {
		return nil, fmt.Errorf("is larger than %d bytes", maxRecordBytes)
	}
	return decodeRecord(b)
}
