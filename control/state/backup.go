package state

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
)

// A backup is a line of JSON (Backup), a snapshot, and the SHA-256 of both, so that a file that was cut off or altered is found before anything is
// replaced by it.
const (
	backupFormat   = "soulbox-backup"
	backupVersion  = 1
	maxBackupLine  = 4 << 10
	restoreTimeout = time.Minute
)

// ErrBackup is in the chain of errors about a backup that is none, was cut off or altered, or is of a newer version.
var ErrBackup = errors.New("not a good backup")

// Backup says what a backup is of.
type Backup struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Server  string    `json:"server"` // that made it
	Index   uint64    `json:"index"`  // of the last change in it
	At      time.Time `json:"at"`
	Bytes   int64     `json:"-"` // of the snapshot; known once it was checked
}

// Save returns a backup of everything that was committed before, to be written once. This server must lead. The tables go on meanwhile: it is of one
// moment.
func (s *Server) Save(ctx context.Context) (Backup, func(io.Writer) error, error) {
	if err := ctx.Err(); err != nil {
		return Backup{}, nil, err
	}
	if err := s.barrier(); err != nil {
		return Backup{}, nil, raftError(err)
	}
	txn := s.read()
	b := Backup{Format: backupFormat, Version: backupVersion, Server: s.cfg.ServerID, Index: readIndex(txn), At: time.Now().UTC()}
	return b, func(w io.Writer) error { return writeBackup(w, b, txn) }, nil
}

func writeBackup(w io.Writer, b Backup, txn *memdb.Txn) error {
	line, err := json.Marshal(b)
	if err != nil {
		return err
	}
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	if _, err := both.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := writeSnapshot(both, txn); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// CheckBackup reads a backup to its end and returns what it is of, or an error with ErrBackup in its chain.
func CheckBackup(r io.Reader) (Backup, error) {
	return readBackup(r, io.Discard)
}

// Restore puts a backup in the place of everything that the servers have. This server must lead; the others get it from it. It is read and
// checked as a whole before anything changes.
func (s *Server) Restore(ctx context.Context, r io.Reader) (Backup, error) {
	spool, err := os.CreateTemp(s.cfg.Dir, "restore-")
	if err != nil {
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	defer func() { _ = errors.Join(spool.Close(), os.Remove(spool.Name())) }() // it was a copy
	b, err := readBackup(r, spool)
	if err != nil {
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return Backup{}, err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return Backup{}, fmt.Errorf("restore: %w", err)
	}
	own, err := s.clusterID()
	if err != nil {
		return Backup{}, err
	}
	if err := s.install(b, spool); err != nil {
		return Backup{}, err
	}
	s.log.Warn("the state was replaced by a backup", "index", b.Index, "made_at", b.At, "made_by", b.Server)
	if got, err := s.clusterID(); own == "" || err == nil && got == own {
		return b, nil
	}
	// The servers stay the cluster that they were, whosever backup it is.
	if _, err := s.Apply(context.WithoutCancel(ctx), &ClusterPut{ID: own, Again: true}); err != nil {
		return b, fmt.Errorf("restore: the state is there, with the id of the cluster that the backup is of: %w", err)
	}
	return b, nil
}

func (s *Server) install(b Backup, spool io.Reader) error {
	s.calls.RLock()
	defer s.calls.RUnlock()
	if s.closed {
		return errClosed
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: b.Index, Size: b.Bytes}
	if err := s.raft.Restore(meta, bufio.NewReader(spool), restoreTimeout); err != nil {
		return fmt.Errorf("restore: %w", raftError(err))
	}
	return nil
}

// readBackup copies the snapshot of a backup to w while it checks all of it.
func readBackup(r io.Reader, w io.Writer) (Backup, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrBackup}, args...)...)
	}
	sum := sha256.New()
	from := &source{r: r}
	in := bufio.NewReaderSize(from, 64<<10)
	line, err := in.ReadSlice('\n')
	if from.err != nil {
		return Backup{}, from.err
	}
	if err != nil || len(line) > maxBackupLine {
		return Backup{}, bad("its first line is none of a backup")
	}
	var b Backup
	if err := json.Unmarshal(line, &b); err != nil || b.Format != backupFormat {
		return Backup{}, bad("its first line is none of a backup")
	}
	if b.Version != backupVersion {
		return Backup{}, bad("it has version %d, this program reads %d", b.Version, backupVersion)
	}
	sum.Write(line)
	// The tables are made on the way, of nothing that is kept: what cannot be read is found now.
	pr, pw := io.Pipe()
	read := make(chan error, 1)
	go func() {
		_, err := readSnapshot(pr)
		read <- errors.Join(err, pr.CloseWithError(err))
	}()
	last, n, err := copyButLast(io.MultiWriter(w, sum, pw), in, sha256.Size)
	_ = pw.CloseWithError(err)
	rerr := <-read
	switch {
	case from.err != nil:
		return Backup{}, from.err
	case errors.Is(err, io.ErrClosedPipe) && rerr == nil:
		return Backup{}, bad("something follows its end")
	case err != nil && rerr == nil:
		return Backup{}, err
	case rerr != nil:
		return Backup{}, bad("%v", rerr)
	case !bytes.Equal(last, sum.Sum(nil)):
		return Backup{}, bad("its checksum does not fit: it was cut off or altered")
	}
	b.Bytes = n
	return b, nil
}

// copyButLast copies all but the last few bytes of r, and returns those.
func copyButLast(w io.Writer, r io.Reader, few int) (last []byte, n int64, err error) {
	buf := make([]byte, 0, 64<<10)
	for {
		got, rerr := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+got]
		if ready := len(buf) - few; ready > 0 {
			if _, err := w.Write(buf[:ready]); err != nil {
				return nil, n, err
			}
			n += int64(ready)
			buf = buf[:copy(buf, buf[ready:])]
		}
		if errors.Is(rerr, io.EOF) {
			return buf, n, nil
		}
		if rerr != nil {
			return nil, n, rerr
		}
	}
}

// source remembers why a backup could not be read, which says nothing of the backup.
type source struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
