package server

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	octets = "application/octet-stream"
	tarred = "application/x-tar"
)

// fileRequest is what every request for a file names.
type fileRequest struct {
	id     api.SandboxID
	node   *nodeapi.Client
	path   string
	target string // of a rename
	opts   nodeapi.FileOptions
}

func (s *Server) fileRequest(r *http.Request) (fileRequest, error) {
	q, err := parseQuery(r)
	if err != nil {
		return fileRequest{}, err
	}
	f := fileRequest{path: q.str("path", maxPathBytes), target: q.str("target", maxPathBytes)}
	f.opts.User = q.str("user", maxUserBytes)
	if m := q.str("mode", 8); m != "" {
		n, err := strconv.ParseUint(m, 8, 32)
		if err != nil || n > 0o7777 {
			q.fail(invalid("parameter mode is %.8q, permission bits from 0 to 7777 (octal) are wanted", m))
		}
		f.opts.Mode = uint32(n)
	}
	if q.err == nil && f.path == "" {
		q.fail(invalid("parameter path is missing"))
	}
	if q.err != nil {
		return fileRequest{}, q.err
	}
	f.id, f.node, err = s.node(r)
	return f, err
}

// readFile is GET /v1/sandboxes/{id}/files.
func (s *Server) readFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	body, info, err := f.node.ReadFile(r.Context(), f.id, f.path, f.opts)
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := json.Marshal(fileView(info))
	if err != nil {
		return fmt.Errorf("encode file: %w", err)
	}
	w.Header().Set(api.FileHeader, base64.StdEncoding.EncodeToString(b))
	s.sendBody(w, r, body, octets, false)
	return nil
}

// writeFile is PUT /v1/sandboxes/{id}/files.
func (s *Server) writeFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	body := s.upload(w, r)
	info, err := f.node.WriteFile(r.Context(), f.id, f.path, body, f.opts)
	if err != nil {
		return body.fault(err)
	}
	writeJSON(w, http.StatusOK, fileView(info))
	return nil
}

// removeFile is DELETE /v1/sandboxes/{id}/files.
func (s *Server) removeFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	if err := f.node.Remove(r.Context(), f.id, f.path, f.opts); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// statFile is GET /v1/sandboxes/{id}/stat.
func (s *Server) statFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	info, err := f.node.Stat(r.Context(), f.id, f.path, f.opts)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, fileView(info))
	return nil
}

// readDir is GET /v1/sandboxes/{id}/dir.
func (s *Server) readDir(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	infos, err := f.node.ReadDir(r.Context(), f.id, f.path, f.opts)
	if err != nil {
		return err
	}
	out := make([]api.File, 0, len(infos))
	for _, info := range infos {
		out = append(out, fileView(info))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// makeDir is POST /v1/sandboxes/{id}/dir.
func (s *Server) makeDir(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	info, err := f.node.Mkdir(r.Context(), f.id, f.path, f.opts)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, fileView(info))
	return nil
}

// renameFile is POST /v1/sandboxes/{id}/rename.
func (s *Server) renameFile(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	if f.target == "" {
		return invalid("parameter target is missing")
	}
	if err := f.node.Rename(r.Context(), f.id, f.path, f.target, f.opts); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readArchive is GET /v1/sandboxes/{id}/archive.
func (s *Server) readArchive(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	body, err := f.node.ReadArchive(r.Context(), f.id, f.path, f.opts)
	if err != nil {
		return err
	}
	defer body.Close()
	s.sendBody(w, r, body, tarred, false)
	return nil
}

// writeArchive is PUT /v1/sandboxes/{id}/archive.
func (s *Server) writeArchive(w http.ResponseWriter, r *http.Request) error {
	f, err := s.fileRequest(r)
	if err != nil {
		return err
	}
	body := s.upload(w, r)
	if err := f.node.WriteArchive(r.Context(), f.id, f.path, body, f.opts); err != nil {
		return body.fault(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func fileView(f guest.FileInfo) api.File {
	return api.File{
		Name: f.Name, Path: f.Path, Type: f.Type, Size: f.Size, Mode: f.Mode, UID: f.UID, GID: f.GID,
		Owner: f.Owner, Group: f.Group, ModTime: f.ModTime.UTC(), Target: f.Target,
	}
}
