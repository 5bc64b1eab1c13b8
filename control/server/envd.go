package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/edge"
	"github.com/soulbox-dev/soulbox/control/rbac"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// envdPrefix is where a sandbox's envd is for whoever has an identity and not the sandbox's token: the same protocol, and every call is
// decided by roles.
const envdPrefix = "/v1/sandboxes/{id}/envd"

// envdRoutes are the calls of envd that clients with an identity make. What a call needs is known by its name alone, but for the paths of
// the file service, which are in its messages.
func (s *Server) envdRoutes() []route {
	files := envdPrefix + "/filesystem.Filesystem/"
	processes := envdPrefix + "/process.Process/"
	list := []route{
		{pattern: "GET " + envdPrefix + "/files", handle: s.passFile, stream: true, needs: can(rbac.File, rbac.Read)},
		{pattern: "POST " + envdPrefix + "/files", handle: s.passFile, stream: true, needs: can(rbac.File, rbac.Update)},
		{pattern: "POST " + processes + "List", handle: s.passEnvd, needs: can(rbac.Sandbox, rbac.Read)},
		{pattern: "POST " + processes + "Connect", handle: s.passEnvd, stream: true, needs: can(rbac.Sandbox, rbac.Connect)},
		{pattern: "POST " + processes + "Start", handle: s.passEnvd, stream: true, needs: can(rbac.Sandbox, rbac.Execute)},
		{pattern: "POST " + processes + "StreamInput", handle: s.passEnvd, stream: true, needs: can(rbac.Sandbox, rbac.Execute)},
	}
	for _, name := range []string{"Update", "SendInput", "CloseStdin", "SendSignal"} {
		list = append(list, route{pattern: "POST " + processes + name, handle: s.passEnvd, needs: can(rbac.Sandbox, rbac.Execute)})
	}
	for _, c := range []struct {
		name   string
		action rbac.Action
		read   func(decode func(proto.Message) error) (paths []string, below bool, err error)
	}{
		{"Stat", rbac.Read, func(decode func(proto.Message) error) ([]string, bool, error) {
			m := &wire.StatRequest{}
			err := decode(m)
			return []string{m.GetPath()}, false, err
		}},
		{"ListDir", rbac.Read, func(decode func(proto.Message) error) ([]string, bool, error) {
			m := &wire.ListDirRequest{}
			err := decode(m)
			return []string{m.GetPath()}, m.GetDepth() > 1, err
		}},
		{"WatchDir", rbac.Read, func(decode func(proto.Message) error) ([]string, bool, error) {
			m := &wire.WatchDirRequest{}
			err := decode(m)
			return []string{m.GetPath()}, m.GetRecursive(), err
		}},
		{"MakeDir", rbac.Create, func(decode func(proto.Message) error) ([]string, bool, error) {
			m := &wire.MakeDirRequest{}
			err := decode(m)
			return []string{m.GetPath()}, false, err
		}},
		{"Move", rbac.Update, func(decode func(proto.Message) error) ([]string, bool, error) {
			m := &wire.MoveRequest{}
			err := decode(m)
			return []string{m.GetSource(), m.GetDestination()}, true, err
		}},
		{"Remove", rbac.Delete, func(decode func(proto.Message) error) ([]string, bool, error) {
			m := &wire.RemoveRequest{}
			err := decode(m)
			return []string{m.GetPath()}, true, err
		}},
	} {
		list = append(list, route{
			pattern: "POST " + files + c.name, stream: c.name == "WatchDir", each: true, needs: can(rbac.File, c.action),
			handle: func(w http.ResponseWriter, r *http.Request) error {
				if err := s.mayFiles(w, r, c.read); err != nil {
					return err
				}
				return s.passEnvd(w, r)
			},
		})
	}
	return list
}

// passFile passes an upload or download on. The path must be in the query: it is what the caller's rights were asked about.
func (s *Server) passFile(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	if p := q.str("path", maxPathBytes); q.err == nil && p == "" {
		q.fail(invalid("parameter path is missing"))
	}
	if q.err != nil {
		return q.err
	}
	if r.Method == http.MethodPost {
		r = r.Clone(r.Context())
		r.Body = s.upload(w, r)
	}
	return s.passEnvd(w, r)
}

// passEnvd passes a call on that the caller may make.
func (s *Server) passEnvd(w http.ResponseWriter, r *http.Request) error {
	id, _, err := s.node(r) // it runs, or is resumed
	if err != nil {
		return err
	}
	if s.cfg.Edge == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service has no way to sandboxes")
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	url := *r.URL
	_, rest, _ := strings.Cut(strings.TrimPrefix(url.Path, "/v1/sandboxes/"), "/envd")
	url.Path, url.RawPath = rest, ""
	inner := r.Clone(ctx)
	inner.URL = &url
	err = s.cfg.Edge.Envd(w, inner, id)
	if errors.Is(err, edge.ErrNotFound) || errors.Is(err, edge.ErrPaused) {
		return api.Errorf(http.StatusConflict, api.CodeNotRunning, "sandbox %s does not run", id)
	}
	return err
}

// maxFileCall bounds the message of a call of the file service, in bytes: two paths and some.
const maxFileCall = 64 << 10

// mayFiles decides on a call of the file service by the paths in its message, where the caller's rights depend on them. The message is put
// back for whoever reads on.
func (s *Server) mayFiles(w http.ResponseWriter, r *http.Request, read func(decode func(proto.Message) error) ([]string, bool, error)) error {
	if !requestOf(r).access.decision.Filter {
		return nil
	}
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxFileCall))
	if err != nil {
		return bodyError(err)
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(b), r.Body), r.Body}
	paths, below, err := read(func(m proto.Message) error { return decodeCall(r.Header, b, m) })
	if err != nil {
		return err
	}
	sb, err := s.cfg.Lifecycle.Get(r.Context(), tenant(r), id)
	if err != nil {
		return err
	}
	o := sandboxObject(sb)
	if o.Paths, err = absolute(paths); err != nil {
		return err
	}
	o.Below = below
	return s.mustMay(r, o)
}

// absolute refuses paths whose meaning is the sandbox's: what they are relative to is not known here, so no rule could be held to them.
func absolute(paths []string) ([]string, error) {
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			return nil, invalid("path %.80q is not absolute: your roles decide by path", p)
		}
	}
	return paths, nil
}

// decodeCall reads the first message of a call, in either codec of the protocol, as envd will read it.
func decodeCall(h http.Header, body []byte, m proto.Message) error {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return invalid("content type %.80q: %s", h.Get("Content-Type"), err)
	}
	for _, name := range []string{"Content-Encoding", "Connect-Content-Encoding"} {
		if v := h.Get(name); v != "" && v != "identity" {
			return invalid("%s is %.40q: your roles decide by path, which is not read out of compressed messages", name, v)
		}
	}
	kind, stream := strings.CutPrefix(kind, "application/connect+")
	if stream { // flags, length, message
		if len(body) < 5 || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:5])) != uint64(len(body)-5) {
			return invalid("the call is not one uncompressed message")
		}
		body = body[5:]
	}
	switch strings.TrimPrefix(kind, "application/") {
	case "json":
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(body, m)
	case "proto":
		err = proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(body, m)
	default:
		return invalid("content type %.80q is not one of the protocol's", h.Get("Content-Type"))
	}
	if err != nil {
		return invalid("the call's message: %s", err)
	}
	return nil
}

// node returns the sandbox of a request and the client of the node that runs it.
func (s *Server) node(r *http.Request) (api.SandboxID, *nodeapi.Client, error) {
	id, err := sandboxID(r)
	if err != nil {
		return "", nil, err
	}
	c, err := s.cfg.Lifecycle.NodeFor(r.Context(), tenant(r), id)
	return id, c, err
}
