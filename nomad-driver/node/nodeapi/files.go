package nodeapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

const octets = "application/octet-stream"

// ReadFile opens a regular file of the sandbox as a user of it. The caller closes the body.
func (c *Client) ReadFile(ctx context.Context, id api.SandboxID, path string, o FileOptions) (io.ReadCloser, guest.FileInfo, error) {
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/files"), o.query(path), nil, "")
	if err != nil {
		return nil, guest.FileInfo{}, err
	}
	info, err := DecodeFileInfo(resp.Header.Get(FileHeader))
	if err != nil {
		_ = resp.Body.Close()
		return nil, guest.FileInfo{}, c.unreachable(ctx, err)
	}
	return resp.Body, info, nil
}

// WriteFile writes a file of the sandbox, making missing parent directories. Nothing is changed unless all of r arrives.
func (c *Client) WriteFile(ctx context.Context, id api.SandboxID, path string, r io.Reader, o FileOptions) (guest.FileInfo, error) {
	var info guest.FileInfo
	return info, c.upload(ctx, sandboxPath(id, "/files"), o.query(path), r, octets, &info)
}

// Stat returns what path is, without following it where it is a symlink.
func (c *Client) Stat(ctx context.Context, id api.SandboxID, path string, o FileOptions) (guest.FileInfo, error) {
	var info guest.FileInfo
	return info, c.call(ctx, http.MethodGet, sandboxPath(id, "/stat"), o.query(path), nil, &info)
}

// ReadDir lists a directory in lexical order, at most guest.MaxDirEntries.
func (c *Client) ReadDir(ctx context.Context, id api.SandboxID, path string, o FileOptions) ([]guest.FileInfo, error) {
	var infos []guest.FileInfo
	return infos, c.call(ctx, http.MethodGet, sandboxPath(id, "/dir"), o.query(path), nil, &infos)
}

// Mkdir makes a directory and its missing parents. One that exists is no error.
func (c *Client) Mkdir(ctx context.Context, id api.SandboxID, path string, o FileOptions) (guest.FileInfo, error) {
	var info guest.FileInfo
	return info, c.call(ctx, http.MethodPost, sandboxPath(id, "/dir"), o.query(path), nil, &info)
}

// Remove removes a file or a directory with everything in it. A missing path is no error.
func (c *Client) Remove(ctx context.Context, id api.SandboxID, path string, o FileOptions) error {
	return c.call(ctx, http.MethodDelete, sandboxPath(id, "/files"), o.query(path), nil, nil)
}

// Rename moves path to target.
func (c *Client) Rename(ctx context.Context, id api.SandboxID, path, target string, o FileOptions) error {
	q := o.query(path)
	q.Set("target", target)
	return c.call(ctx, http.MethodPost, sandboxPath(id, "/rename"), q, nil, nil)
}

// ReadArchive opens path, a file or a directory with everything in it, as a tar stream whose names start with the last
// element of path. An error of the node in the middle comes from Read. The caller closes it.
func (c *Client) ReadArchive(ctx context.Context, id api.SandboxID, path string, o FileOptions) (io.ReadCloser, error) {
	return c.download(ctx, sandboxPath(id, "/archive"), o.query(path))
}

// WriteArchive unpacks a tar stream below the directory path, which is made where it is missing.
func (c *Client) WriteArchive(ctx context.Context, id api.SandboxID, path string, r io.Reader, o FileOptions) error {
	return c.upload(ctx, sandboxPath(id, "/archive"), o.query(path), r, "application/x-tar", nil)
}

// Logs opens output of the main process. offset is that of the first byte. The caller closes it.
func (c *Client) Logs(ctx context.Context, id api.SandboxID, o LogOptions) (body io.ReadCloser, offset int64, err error) {
	q := url.Values{}
	if o.Stream != "" {
		q.Set("stream", o.Stream)
	}
	if o.Offset != 0 {
		q.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	if o.Tail != 0 {
		q.Set("tail", strconv.FormatInt(o.Tail, 10))
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/logs"), q, nil, "")
	if err != nil {
		return nil, 0, err
	}
	if offset, err = strconv.ParseInt(resp.Header.Get(OffsetHeader), 10, 64); err != nil {
		_ = resp.Body.Close()
		return nil, 0, c.unreachable(ctx, fmt.Errorf("header %s: %w", OffsetHeader, err))
	}
	return &trailerBody{resp: resp}, offset, nil
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
	resp, err := c.do(ctx, http.MethodPut, path, q, r, contentType)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxJSONBytes)).Decode(out); err != nil {
		return c.unreachable(ctx, fmt.Errorf("decode answer to PUT %s: %w", path, err))
	}
	return nil
}

func (c *Client) download(ctx context.Context, path string, q url.Values) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, path, q, nil, "")
	if err != nil {
		return nil, err
	}
	return &trailerBody{resp: resp}, nil
}

// trailerBody is a body that may end with ErrorTrailer.
type trailerBody struct{ resp *http.Response }

func (b *trailerBody) Read(p []byte) (int, error) {
	n, err := b.resp.Body.Read(p)
	if err != io.EOF { //nolint:errorlint // a Reader returns io.EOF itself
		return n, err
	}
	if s := b.resp.Trailer.Get(ErrorTrailer); s != "" {
		var e api.Error
		if json.Unmarshal([]byte(s), &e) != nil || e.Message == "" {
			e = *api.Errorf(http.StatusInternalServerError, api.CodeInternal, "the node broke off the transfer")
		}
		return n, &e
	}
	return n, io.EOF
}

func (b *trailerBody) Close() error { return b.resp.Body.Close() }

// EncodeFileInfo returns info as the value of FileHeader.
func EncodeFileInfo(info guest.FileInfo) (string, error) {
	b, err := json.Marshal(info)
	if err != nil {
		return "", fmt.Errorf("encode file info: %w", err)
	}
	return base64.StdEncoding.EncodeToString(b), nil
}

// DecodeFileInfo reads the value of FileHeader.
func DecodeFileInfo(s string) (guest.FileInfo, error) {
	var info guest.FileInfo
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return info, fmt.Errorf("header %s: %w", FileHeader, err)
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("header %s: %w", FileHeader, err)
	}
	return info, nil
}
