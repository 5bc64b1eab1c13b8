package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
)

const (
	octets = "application/octet-stream"
	tarred = "application/x-tar"
)

// ReadFile opens a regular file of a sandbox as a user of it. The caller closes the body.
func (c *Client) ReadFile(ctx context.Context, id SandboxID, path string, o FileOptions) (io.ReadCloser, File, error) {
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/files"), o.query(path), nil, "")
	if err != nil {
		return nil, File{}, err
	}
	f, err := decodeFileHeader(resp.Header.Get(FileHeader))
	if err != nil {
		_ = resp.Body.Close()
		return nil, File{}, c.unreachable(ctx, err)
	}
	return &trailerBody{resp: resp}, f, nil
}

// WriteFile writes a file of a sandbox, making missing parent directories. Nothing is changed unless all of r arrives.
func (c *Client) WriteFile(ctx context.Context, id SandboxID, path string, r io.Reader, o FileOptions) (File, error) {
	var out File
	return out, c.upload(ctx, sandboxPath(id, "/files"), o.query(path), r, octets, &out)
}

// Stat returns what path is, without following it where it is a symlink.
func (c *Client) Stat(ctx context.Context, id SandboxID, path string, o FileOptions) (File, error) {
	var out File
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/stat"), o.query(path), nil, &out)
}

// ReadDir lists a directory in lexical order.
func (c *Client) ReadDir(ctx context.Context, id SandboxID, path string, o FileOptions) ([]File, error) {
	var out []File
	return out, c.call(ctx, http.MethodGet, sandboxPath(id, "/dir"), o.query(path), nil, &out)
}

// Mkdir makes a directory and its missing parents. One that exists is no error.
func (c *Client) Mkdir(ctx context.Context, id SandboxID, path string, o FileOptions) (File, error) {
	var out File
	return out, c.call(ctx, http.MethodPost, sandboxPath(id, "/dir"), o.query(path), nil, &out)
}

// Remove removes a file or a directory with everything in it. A missing path is no error.
func (c *Client) Remove(ctx context.Context, id SandboxID, path string, o FileOptions) error {
	return c.call(ctx, http.MethodDelete, sandboxPath(id, "/files"), o.query(path), nil, nil)
}

// Rename moves path to target.
func (c *Client) Rename(ctx context.Context, id SandboxID, path, target string, o FileOptions) error {
	q := o.query(path)
	q.Set("target", target)
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/rename"), q, nil, nil)
}

// ReadArchive opens path, a file or a directory with everything in it, as a tar stream whose names start with the last
// element of path. An error in the middle comes from Read. The caller closes it.
func (c *Client) ReadArchive(ctx context.Context, id SandboxID, path string, o FileOptions) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/archive"), o.query(path), nil, "")
	if err != nil {
		return nil, err
	}
	return &trailerBody{resp: resp}, nil
}

// WriteArchive unpacks a tar stream below the directory path, which is made where it is missing.
func (c *Client) WriteArchive(ctx context.Context, id SandboxID, path string, r io.Reader, o FileOptions) error {
	return c.upload(ctx, sandboxPath(id, "/archive"), o.query(path), r, tarred, nil)
}

func (o FileOptions) query(path string) url.Values {
	q := url.Values{"path": {path}}
	if o.User != "" {
		q.Set("user", o.User)
	}
	if o.Mode != 0 {
		q.Set("mode", strconv.FormatUint(uint64(o.Mode), 8))
	}
	return q
}

func (c *Client) upload(ctx context.Context, path string, q url.Values, r io.Reader, contentType string, out any) error {
	if r == nil {
		r = http.NoBody
	}
	resp, err := c.do(ctx, http.MethodPut, path, q, r, contentType)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.decode(ctx, resp, out)
}

// trailerBody is a body that may end with ErrorTrailer.
type trailerBody struct{ resp *http.Response }

func (b *trailerBody) Read(p []byte) (int, error) {
	n, err := b.resp.Body.Read(p)
	if err != io.EOF { //nolint:errorlint // a Reader returns io.EOF itself
		return n, err
	}
	if s := b.resp.Trailer.Get(ErrorTrailer); s != "" {
		var e Error
		if json.Unmarshal([]byte(s), &e) != nil || e.Message == "" {
			e = *Errorf(http.StatusInternalServerError, CodeInternal, "the service broke off the transfer")
		}
		return n, &e
	}
	return n, io.EOF
}

func (b *trailerBody) Close() error { return b.resp.Body.Close() }

func decodeFileHeader(s string) (File, error) {
	var f File
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return File{}, fmt.Errorf("header %s: %w", FileHeader, err)
	}
	return f, nil
}
