package files

import (
	"context"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/handover"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
)

// maxParts is how many files one request may upload.
const maxParts = 1000

// Uploaded is what is said of a file that was uploaded.
type Uploaded struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"` // file
	Metadata map[string]string `json:"metadata,omitempty"`
}

// upload is one request's files. They are put in their places when all have arrived.
type upload struct {
	user     place.User
	metadata map[string]string
	mode     *os.FileMode // of all files; nil: as they were
	files    []*replacement
	targets  map[string]bool
}

func (h handler) upload(w http.ResponseWriter, r *http.Request) (err error) {
	ctx := r.Context()
	q := r.URL.Query()
	u, err := place.As(ctx, scope.Of(ctx), q.Get("username"))
	if err != nil {
		return err
	}
	up := &upload{user: u, targets: map[string]bool{}}
	if up.metadata, err = metadataOf(r.Header); err != nil {
		return err
	}
	if up.mode, err = modeOf(r.Header); err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return fail(http.StatusBadRequest, "invalid content type: %v", err)
	}
	switch kind {
	case "application/octet-stream":
		if q.Get("path") == "" {
			return fail(http.StatusBadRequest, "missing path query parameter")
		}
	case "multipart/form-data":
		if b := params["boundary"]; b == "" || len(b) > 200 {
			return fail(http.StatusBadRequest, "multipart body without a boundary")
		}
	default:
		return fail(http.StatusUnsupportedMediaType, "unsupported content type '%.80s', supported: multipart/form-data, application/octet-stream", kind)
	}
	body, err := h.bodyOf(w, r)
	if err != nil {
		return err
	}
	if kind == "application/octet-stream" {
		if r.Header.Get("Content-Encoding") == "" && handover.Welcome(r) {
			body = handed{r, h.MaxBytes}
		}
		err = up.add(ctx, q.Get("path"), body)
	} else {
		err = up.multipart(ctx, multipart.NewReader(body, params["boundary"]), q.Get("path"))
	}
	if err != nil {
		return errors.Join(err, up.undo())
	}
	for i, f := range up.files {
		if err := f.commit(ctx); err != nil {
			up.files = up.files[i+1:]
			return errors.Join(err, up.undo())
		}
	}
	done := make([]Uploaded, len(up.files))
	for i, f := range up.files {
		done[i] = Uploaded{Path: f.asked, Name: path.Base(f.asked), Type: "file", Metadata: up.metadata}
	}
	writeJSON(w, http.StatusOK, done)
	return nil
}

// handed is a body that the client writes into the file itself.
type handed struct {
	r     *http.Request
	limit int64 // bytes
}

// Read implements io.Reader, for the type alone: nothing is read from such a body.
func (handed) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// writeInto has the client fill f.
func (b handed) writeInto(f *os.File) error {
	err := handover.Fill(b.r, f, b.limit)
	switch {
	case errors.Is(err, handover.ErrTooLong):
		return tooLong(b.limit)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return err
	case err != nil:
		return badBody(err)
	}
	return nil
}

// multipart takes every part that is a field of the name file. The path of a part is its file name, unless the request
// names one.
func (up *upload) multipart(ctx context.Context, m *multipart.Reader, named string) error {
	for {
		part, err := m.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badBody(err)
		}
		field, name := partNames(part)
		if field != "file" {
			continue // NextRawPart reads over it
		}
		if len(up.files) == maxParts {
			return fail(http.StatusBadRequest, "more than %d files in one request", maxParts)
		}
		if named != "" {
			name = named
		}
		if name == "" {
			return fail(http.StatusBadRequest, "a file without a path: neither the query nor the part names one")
		}
		if err := up.add(ctx, name, part); err != nil {
			return err
		}
	}
	if len(up.files) == 0 {
		return fail(http.StatusBadRequest, "no field 'file' in the body")
	}
	return nil
}

// partNames returns a part's field name and its file name with all of its directories, which the library cuts off.
func partNames(part *multipart.Part) (field, file string) {
	kind, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil || kind != "form-data" {
		return "", ""
	}
	return params["name"], unescape(params["filename"])
}

// unescape undoes what browsers do to quotes and line ends in file names.
func unescape(name string) string {
	return strings.NewReplacer("%22", `"`, "%0D", "\r", "%0A", "\n").Replace(name)
}

// add writes one file next to where it will be.
func (up *upload) add(ctx context.Context, name string, body io.Reader) error {
	p, err := up.user.Path(name)
	if err != nil {
		return err
	}
	f, err := begin(ctx, up.user, p)
	if err != nil {
		return err
	}
	if up.targets[f.target] {
		_ = f.f.Close()
		return errors.Join(fail(http.StatusBadRequest, "you cannot upload multiple files to the same path '%s'", p), f.undo())
	}
	up.targets[f.target] = true
	f.chosen = up.mode
	if err := f.fill(body, up.metadata); err != nil {
		return bodyOrDisk(err)
	}
	up.files = append(up.files, f)
	return nil
}

// bodyOrDisk tells the errors of a multipart body, which come from the library, from those of the disk.
func bodyOrDisk(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return badBody(err)
	}
	return err
}

func (up *upload) undo() error {
	var errs []error
	for _, f := range up.files {
		errs = append(errs, f.undo())
	}
	return errors.Join(errs...)
}
