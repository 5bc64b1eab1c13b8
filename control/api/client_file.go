package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	pathpkg "path"
	"strconv"

	"connectrpc.com/connect"

	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
)

const (
	octets = "application/octet-stream"
	tarred = "application/x-tar"
)

// ReadFile opens a regular file of a sandbox as a user of it. The caller closes the body. The File has its path, size, mode and time.
func (c *Client) ReadFile(ctx context.Context, id SandboxID, path string, o FileOptions) (io.ReadCloser, File, error) {
	resp, err := c.do(ctx, http.MethodGet, sandboxPath(id, "/envd/files"), o.envd(path), nil, "")
	if err != nil {
		return nil, File{}, err
	}
	f := File{Path: path, Name: pathpkg.Base(path), Type: "file", Size: resp.ContentLength}
	mode, err := strconv.ParseUint(resp.Header.Get(modeHeader), 8, 12)
	if err != nil {
		_ = resp.Body.Close()
		return nil, File{}, c.unreachable(ctx, fmt.Errorf("header %s: %w", modeHeader, err))
	}
	f.Mode = uint32(mode)
	f.ModTime, _ = http.ParseTime(resp.Header.Get("Last-Modified")) // files of the kernel's own have none
	return resp.Body, f, nil
}

// WriteFile writes a file of a sandbox, making missing parent directories. Nothing is changed unless all of r arrives.
func (c *Client) WriteFile(ctx context.Context, id SandboxID, path string, r io.Reader, o FileOptions) error {
	if r == nil {
		r = http.NoBody
	}
	req, err := c.request(ctx, http.MethodPost, sandboxPath(id, "/envd/files"), o.envd(path), r)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", octets)
	if o.Mode != 0 {
		req.Header.Set(modeHeader, strconv.FormatUint(uint64(o.Mode), 8))
	}
	resp, err := c.send(ctx, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.decode(ctx, resp, nil)
}

// Stat returns what path is. Of a symlink, Type and Mode are those of what it leads to, and Target is where that is.
func (c *Client) Stat(ctx context.Context, id SandboxID, path string, o FileOptions) (File, error) {
	resp, err := c.filesystem(id, o.User).Stat(ctx, connect.NewRequest(&wire.StatRequest{Path: path}))
	if err != nil {
		return File{}, c.callError(ctx, err)
	}
	return fileOf(resp.Msg.GetEntry()), nil
}

// ReadDir lists a directory in lexical order.
func (c *Client) ReadDir(ctx context.Context, id SandboxID, path string, o FileOptions) ([]File, error) {
	resp, err := c.filesystem(id, o.User).ListDir(ctx, connect.NewRequest(&wire.ListDirRequest{Path: path, Depth: 1}))
	if err != nil {
		return nil, c.callError(ctx, err)
	}
	out := make([]File, 0, len(resp.Msg.GetEntries()))
	for _, e := range resp.Msg.GetEntries() {
		out = append(out, fileOf(e))
	}
	return out, nil
}

// Mkdir makes a directory and its missing parents. One that exists is an error with the code already_exists.
func (c *Client) Mkdir(ctx context.Context, id SandboxID, path string, o FileOptions) (File, error) {
	resp, err := c.filesystem(id, o.User).MakeDir(ctx, connect.NewRequest(&wire.MakeDirRequest{Path: path}))
	if err != nil {
		return File{}, c.callError(ctx, err)
	}
	return fileOf(resp.Msg.GetEntry()), nil
}

// Remove removes a file or a directory with everything in it. A missing path is no error.
func (c *Client) Remove(ctx context.Context, id SandboxID, path string, o FileOptions) error {
	_, err := c.filesystem(id, o.User).Remove(ctx, connect.NewRequest(&wire.RemoveRequest{Path: path}))
	return c.answered(ctx, err)
}

// Rename moves path to target.
func (c *Client) Rename(ctx context.Context, id SandboxID, path, target string, o FileOptions) error {
	_, err := c.filesystem(id, o.User).Move(ctx, connect.NewRequest(&wire.MoveRequest{Source: path, Destination: target}))
	return c.answered(ctx, err)
}

func fileOf(e *wire.EntryInfo) File {
	f := File{
		Name: e.GetName(), Path: e.GetPath(), Type: "other", Size: e.GetSize(), Mode: e.GetMode(), Owner: e.GetOwner(), Group: e.GetGroup(),
		ModTime: e.GetModifiedTime().AsTime(), Target: e.GetSymlinkTarget(), Metadata: e.GetMetadata(),
	}
	switch e.GetType() {
	case wire.FileType_FILE_TYPE_FILE:
		f.Type = "file"
	case wire.FileType_FILE_TYPE_DIRECTORY:
		f.Type = "directory"
	case wire.FileType_FILE_TYPE_SYMLINK:
		f.Type = "symlink"
	}
	return f
}

// envd names a file as envd's own requests do.
func (o FileOptions) envd(path string) url.Values {
	q := url.Values{"path": {path}}
	if o.User != "" {
		q.Set("username", o.User)
	}
	return q
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
