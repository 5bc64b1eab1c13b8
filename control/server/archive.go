package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	octets = "application/octet-stream"
	tarred = "application/x-tar"
)

// fileRequest is what every request for an archive names.
type fileRequest struct {
	id   api.SandboxID
	node *nodeapi.Client
	path string
	opts nodeapi.FileOptions
}

func (s *Server) fileRequest(r *http.Request) (fileRequest, error) {
	q, err := parseQuery(r)
	if err != nil {
		return fileRequest{}, err
	}
	f := fileRequest{path: q.str("path", maxPathBytes)}
	f.opts.User = q.str("user", maxUserBytes)
	if q.err == nil && f.path == "" {
		q.fail(invalid("parameter path is missing"))
	}
	if q.err != nil {
		return fileRequest{}, q.err
	}
	f.id, f.node, err = s.node(r)
	return f, err
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
