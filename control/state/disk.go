package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"

	"github.com/soulbox-dev/soulbox/nomad-driver/failpoint"
)

// Names in the state folder. Changing one breaks every installation.
const (
	fileServerID = "server-id"
	dirWAL       = "wal"
	fileBolt     = "raft.db"
)

// stores are where raft keeps its log, its votes and its snapshots.
type stores struct {
	log    raft.LogStore
	stable raft.StableStore
	snaps  raft.SnapshotStore
	closer io.Closer // of log and stable; nil in memory
}

func (s *stores) close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer.Close()
}

// openStores opens the stores of cfg.Dir. A folder that has a Bolt log goes on with it; a fresh one gets a write-ahead log.
func openStores(cfg *Config) (*stores, error) {
	if cfg.Dir == "" {
		mem := raft.NewInmemStore()
		return &stores{log: mem, stable: mem, snaps: raft.NewInmemSnapshotStore()}, nil
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, cfg.Logger.Named("snapshot"))
	if err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", cfg.Dir, err)
	}
	bolt := filepath.Join(cfg.Dir, fileBolt)
	if _, err := os.Stat(bolt); err == nil {
		db, err := raftboltdb.New(raftboltdb.Options{Path: bolt})
		if err != nil {
			return nil, fmt.Errorf("open log %s: %w", bolt, err)
		}
		return &stores{log: db, stable: db, snaps: snaps, closer: db}, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for log %s: %w", bolt, err)
	}
	dir := filepath.Join(cfg.Dir, dirWAL)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make log folder: %w", err)
	}
	w, err := wal.Open(dir, wal.WithLogger(cfg.Logger.Named("wal")), wal.WithSegmentSize(cfg.SegmentBytes))
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", dir, err)
	}
	return &stores{log: w, stable: w, snaps: snaps, closer: w}, nil
}

// killedStore is a log in which a claim may be the last thing that this server writes: no other has it then.
type killedStore struct{ raft.LogStore }

// StoreLogs implements raft.LogStore.
func (k killedStore) StoreLogs(logs []*raft.Log) error {
	err := k.LogStore.StoreLogs(logs)
	for _, l := range logs {
		if l.Type == raft.LogCommand && len(l.Data) > 0 && commandType(l.Data[0]) == typeSlotClaim {
			failpoint.At("claim.stored")
		}
	}
	return err
}

// serverID returns the id that dir keeps, and makes one in a fresh folder.
func serverID(dir string) (string, error) {
	if dir == "" {
		return randomHex(), nil
	}
	path := filepath.Join(dir, fileServerID)
	b, err := os.ReadFile(path)
	if err == nil {
		if id := strings.TrimSpace(string(b)); id != "" {
			return id, nil
		}
		return "", fmt.Errorf("server id in %s is empty", path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read server id: %w", err)
	}
	id := randomHex()
	return id, WriteFileDurably(path, []byte(id+"\n"), 0o600)
}

func randomHex() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	return hex.EncodeToString(b[:])
}

// WriteFileDurably replaces the file at path: after a crash it holds the old bytes or the new ones, and after a nil
// return the new ones.
func WriteFileDurably(path string, data []byte, perm os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err = f.Chmod(perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if _, err = f.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = f.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = f.Close(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}
