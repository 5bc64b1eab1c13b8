package server

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Backups makes and restores backups of the state; state.Server is one.
type Backups interface {
	// Save returns a backup, to be written once.
	Save(ctx context.Context) (state.Backup, func(io.Writer) error, error)
	// Restore puts a backup in the place of everything. It is checked before anything changes.
	Restore(ctx context.Context, r io.Reader) (state.Backup, error)
}

func (s *Server) needBackups() error {
	if s.cfg.Backups == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service makes no backups")
	}
	return nil
}

// saveState is GET /v1/operator/snapshot: everything that the service keeps, secrets included. Its end is a checksum: what was cut off is found.
func (s *Server) saveState(w http.ResponseWriter, r *http.Request) error {
	if err := s.needBackups(); err != nil {
		return err
	}
	b, write, err := s.cfg.Backups.Save(r.Context())
	if err != nil {
		return err
	}
	s.log.Info("state saved", "index", b.Index, "by", caller(r).User())
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if err := write(w); err != nil && r.Context().Err() == nil {
		s.log.Error("backup was cut off", "error", err)
	}
	return nil
}

// restoreState is PUT /v1/operator/snapshot.
func (s *Server) restoreState(w http.ResponseWriter, r *http.Request) error {
	if err := s.needBackups(); err != nil {
		return err
	}
	body := s.upload(w, r)
	b, err := s.cfg.Backups.Restore(r.Context(), body)
	if errors.Is(err, state.ErrBackup) {
		err = invalid("%s", err.Error())
	}
	if err != nil {
		return body.fault(err)
	}
	writeJSON(w, http.StatusOK, api.Restored{Index: b.Index, At: b.At, Server: b.Server, Bytes: b.Bytes})
	return nil
}
