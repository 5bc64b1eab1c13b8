package files

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
)

const (
	maxSources     = 10_000
	maxComposeBody = 4 << 20 // bytes
)

// composeRequest is the body of POST /files/compose.
type composeRequest struct {
	SourcePaths []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// compose joins files into one, in the order given. The destination appears when it is complete. The sources, which are the
// parts of one upload, are removed then: whoever joins them has no more use for them, and the room that they take.
func (h handler) compose(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var req composeRequest
	body := &idleReader{r: http.MaxBytesReader(w, r.Body, maxComposeBody), rc: http.NewResponseController(w), idle: h.IdleTimeout}
	if err := json.NewDecoder(body).Decode(&req); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return fail(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", maxComposeBody)
		}
		return fail(http.StatusBadRequest, "body: %v", err)
	}
	switch n := len(req.SourcePaths); {
	case n == 0:
		return fail(http.StatusBadRequest, "source_paths is empty")
	case n > maxSources:
		return fail(http.StatusBadRequest, "source_paths has %d paths, at most %d are allowed", n, maxSources)
	case req.Destination == "":
		return fail(http.StatusBadRequest, "destination is empty")
	}
	u, err := place.As(ctx, scope.Of(ctx), req.Username)
	if err != nil {
		return err
	}
	to, err := u.Path(req.Destination)
	if err != nil {
		return err
	}
	sources := make([]string, len(req.SourcePaths))
	for i, p := range req.SourcePaths {
		if p == "" {
			return fail(http.StatusBadRequest, "source_paths[%d] is empty", i)
		}
		if sources[i], err = u.Path(p); err != nil {
			return err
		}
	}
	f, err := begin(ctx, u, to)
	if err != nil {
		return err
	}
	if f.temp == "" {
		// In place would destroy what is there before all sources are known to be readable.
		_ = f.f.Close()
		return fail(http.StatusForbidden, "the directory of '%s' may not be written", to)
	}
	if err := f.finish(h.join(r, u, f, sources), nil); err != nil {
		return err
	}
	if err := f.commit(ctx); err != nil {
		return err
	}
	for _, p := range sources {
		if p == to || p == f.target {
			continue
		}
		if err := u.Sandbox.Guest.Remove(ctx, u.Request(p)); err != nil {
			return &pathError{p, err}
		}
	}
	writeJSON(w, http.StatusOK, Uploaded{Path: to, Name: path.Base(to), Type: "file"})
	return nil
}

// join appends the sources to the new file. The kernel copies.
func (h handler) join(r *http.Request, u place.User, f *replacement, sources []string) error {
	total := int64(0)
	for _, p := range sources {
		if err := r.Context().Err(); err != nil {
			return err
		}
		in, err := openRegular(r.Context(), u, p, unix.O_RDONLY)
		if err != nil {
			return err
		}
		var n int64
		err = disk.WithinLimits(func() error {
			n, err = io.Copy(f.f, io.LimitReader(in, h.MaxBytes-total+1))
			return err
		})
		if cerr := in.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		if total += n; total > h.MaxBytes {
			return fail(http.StatusRequestEntityTooLarge, "the parts have more than %d bytes", h.MaxBytes)
		}
	}
	return nil
}
