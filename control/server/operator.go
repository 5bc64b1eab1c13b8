package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

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

// Servers shows and changes the cluster of control servers; state.Server is one.
type Servers interface {
	Servers() ([]state.PeerStatus, error)
	RemoveServer(ctx context.Context, id string) error
	AutopilotState() (state.AutopilotState, error)
	AutopilotConfig() state.Autopilot
	SetAutopilot(ctx context.Context, change func(*state.Autopilot)) (state.Autopilot, error)
}

// controlServers is GET /v1/operator/raft.
func (s *Server) controlServers(w http.ResponseWriter, _ *http.Request) error {
	if s.cfg.Servers == nil {
		return errNoServers
	}
	list, err := s.cfg.Servers.Servers()
	if err != nil {
		return err
	}
	out := api.ControlServers{Servers: []api.ControlServer{}}
	voters, healthy := 0, 0
	for _, p := range list {
		out.Servers = append(out.Servers, api.ControlServer{
			ID: p.ID, Address: p.Addr, Leader: p.Leads, Voter: p.Voter, Healthy: p.Silent == 0, SilentMs: float64(p.Silent.Milliseconds()),
		})
		if p.Voter {
			voters++
			if p.Silent == 0 {
				healthy++
			}
		}
	}
	out.FailureTolerance = max(0, healthy-voters/2-1)
	writeJSON(w, http.StatusOK, out)
	return nil
}

var errNoServers = api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service is no cluster of servers")

// removeControlServer is DELETE /v1/operator/raft/{server}.
func (s *Server) removeControlServer(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Servers == nil {
		return errNoServers
	}
	id := r.PathValue("server")
	requestOf(r).object = id
	err := s.cfg.Servers.RemoveServer(r.Context(), id)
	if errors.Is(err, state.ErrPeer) {
		return api.Errorf(http.StatusConflict, api.CodeConflict, "%s", err.Error())
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// autopilotState is GET /v1/operator/autopilot/state.
func (s *Server) autopilotState(w http.ResponseWriter, _ *http.Request) error {
	if s.cfg.Servers == nil {
		return errNoServers
	}
	st, err := s.cfg.Servers.AutopilotState()
	if err != nil {
		return err
	}
	out := api.AutopilotState{Healthy: st.Healthy, FailureTolerance: st.FailureTolerance, Leader: st.Leader, Voters: st.Voters, Servers: []api.AutopilotServer{}}
	for _, p := range st.Servers {
		a := api.AutopilotServer{
			ID: p.ID, Address: p.Addr, Leader: p.Leads, Voter: p.Voter, Healthy: p.Healthy, LastTerm: p.LastTerm, LastIndex: p.LastIndex, LastContactMs: -1,
		}
		if p.LastContact >= 0 {
			a.LastContactMs = float64(p.LastContact.Microseconds()) / 1000
		}
		switch since := p.Since.UTC(); {
		case p.Since.IsZero():
		case p.Healthy:
			a.StableSince = &since
		default:
			a.FailedSince = &since
		}
		out.Servers = append(out.Servers, a)
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// autopilotConfig is GET /v1/operator/autopilot/configuration.
func (s *Server) autopilotConfig(w http.ResponseWriter, _ *http.Request) error {
	if s.cfg.Servers == nil {
		return errNoServers
	}
	writeJSON(w, http.StatusOK, autopilotView(s.cfg.Servers.AutopilotConfig()))
	return nil
}

// setAutopilot is PUT /v1/operator/autopilot/configuration.
func (s *Server) setAutopilot(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Servers == nil {
		return errNoServers
	}
	var in api.AutopilotChange
	if err := s.decodeBody(w, r, maxJSONBytes, false, &in); err != nil {
		return err
	}
	got, err := s.cfg.Servers.SetAutopilot(r.Context(), func(a *state.Autopilot) {
		ms := func(to *time.Duration, n *int64) {
			if n != nil {
				*to = time.Duration(min(max(*n, -1), maxAutopilotMs)) * time.Millisecond
			}
		}
		ms(&a.DeadAfter, in.DeadServerLastContactMs)
		ms(&a.LastContact, in.LastContactMs)
		ms(&a.Stabilization, in.ServerStabilizationTimeMs)
		setIf(&a.CleanupDeadServers, in.CleanupDeadServers)
		setIf(&a.MaxTrailingLogs, in.MaxTrailingLogs)
		setIf(&a.MinQuorum, in.MinQuorum)
	})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, autopilotView(got))
	return nil
}

// maxAutopilotMs bounds what a client says of a time: ten years.
const maxAutopilotMs = 10 * 365 * 24 * 3600 * 1000

func setIf[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func autopilotView(c state.Autopilot) api.AutopilotConfig {
	return api.AutopilotConfig{
		CleanupDeadServers: c.CleanupDeadServers, DeadServerLastContactMs: c.DeadAfter.Milliseconds(), LastContactMs: c.LastContact.Milliseconds(),
		MaxTrailingLogs: c.MaxTrailingLogs, MinQuorum: c.MinQuorum, ServerStabilizationTimeMs: c.Stabilization.Milliseconds(),
	}
}
