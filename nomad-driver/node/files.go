package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

const (
	maxLinks    = 40 // symlinks followed for one path, as in the kernel
	defaultMode = 0o644
	typeFile    = "file"
	typeDir     = "directory"
	typeSymlink = "symlink"
)

// fileTarget is what a request for a file is about: all of it is resolved inside the sandbox, by the guest, with the
// user's rights.
type fileTarget struct {
	guest guestClient
	box   *box
	path  string
	user  string
	mode  uint32
}

func (n *Node) fileTarget(r *http.Request) (fileTarget, error) {
	g, b, err := n.requestGuest(r)
	if err != nil {
		return fileTarget{}, err
	}
	q := r.URL.Query()
	t := fileTarget{guest: g, box: b, path: q.Get("path"), user: q.Get("user")}
	if err := checkPath("path", t.path); err != nil {
		return fileTarget{}, err
	}
	if err := checkUser("user", t.user); err != nil {
		return fileTarget{}, err
	}
	if s := q.Get("mode"); s != "" {
		m, err := strconv.ParseUint(s, 8, 32)
		if err != nil || m > 0o777 {
			return fileTarget{}, invalid("mode: %.20q is not an octal number of at most 777", s)
		}
		t.mode = uint32(m)
	}
	return t, nil
}

func (t fileTarget) request(p string) guest.FileRequest {
	return guest.FileRequest{Path: p, User: t.user}
}

func (n *Node) getStat(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	info, err := t.guest.Stat(r.Context(), t.request(t.path))
	if err != nil {
		return guestGone(t.box, err)
	}
	writeJSON(w, http.StatusOK, info)
	return nil
}

func (n *Node) getDir(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	infos, err := t.guest.ReadDir(r.Context(), t.request(t.path))
	if err != nil {
		return guestGone(t.box, err)
	}
	if infos == nil {
		infos = []guest.FileInfo{}
	}
	writeJSON(w, http.StatusOK, infos)
	return nil
}

func (n *Node) postDir(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	info, err := t.guest.Mkdir(r.Context(), guest.FileRequest{Path: t.path, User: t.user, Mode: t.mode, Parents: true})
	if err != nil {
		return guestGone(t.box, err)
	}
	writeJSON(w, http.StatusOK, info)
	return nil
}

func (n *Node) deleteFile(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	if err := t.guest.Remove(r.Context(), t.request(t.path)); err != nil {
		return guestGone(t.box, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (n *Node) postRename(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	target := r.URL.Query().Get("target")
	if err := checkPath("target", target); err != nil {
		return err
	}
	if err := t.guest.Rename(r.Context(), guest.FileRequest{Path: t.path, Target: target, User: t.user}); err != nil {
		return guestGone(t.box, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getFile streams a regular file from the descriptor that the guest opened.
func (n *Node) getFile(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	f, info, err := openRegular(r.Context(), t, t.path)
	if err != nil {
		return guestGone(t.box, err)
	}
	defer f.Close()
	header, err := nodeapi.EncodeFileInfo(info)
	if err != nil {
		return err
	}
	w.Header().Set(nodeapi.FileHeader, header)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
	w.WriteHeader(http.StatusOK)
	// A file that shrinks meanwhile ends in a broken connection, never in other bytes; one that grows is cut at the size
	// that was announced.
	_, err = io.CopyN(idleWriter{w: w, rc: http.NewResponseController(w)}, f, info.Size)
	return err
}

// openRegular opens a regular file for reading. Its size is the descriptor's, as of now.
func openRegular(ctx context.Context, t fileTarget, p string) (*os.File, guest.FileInfo, error) {
	f, info, err := t.guest.Open(ctx, guest.FileRequest{Path: p, User: t.user, Flags: unix.O_RDONLY})
	if err != nil {
		return nil, guest.FileInfo{}, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case fi.IsDir():
		err = api.Errorf(http.StatusBadRequest, guest.CodeIsDir, "%.200q is a directory: get it as an archive", p)
	case !fi.Mode().IsRegular():
		err = invalid("path: %.200q is no regular file", p)
	}
	if err != nil {
		_ = f.Close()
		return nil, guest.FileInfo{}, err
	}
	info.Size = fi.Size()
	return f, info, nil
}

// putFile replaces a file by the request's body: into a temporary file beside it, and a rename when all has arrived.
func (n *Node) putFile(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	body := idleReader{r: r.Body, rc: http.NewResponseController(w)}
	if err := t.replace(r.Context(), body, r.ContentLength); err != nil {
		return guestGone(t.box, err)
	}
	info, err := t.guest.Stat(r.Context(), t.request(t.path))
	if err != nil {
		return guestGone(t.box, err)
	}
	writeJSON(w, http.StatusOK, info)
	return nil
}

// replace writes the file at t.path. length is that of the body, or -1.
func (t fileTarget) replace(ctx context.Context, body io.Reader, length int64) error {
	target, old, err := t.follow(ctx)
	if err != nil {
		return err
	}
	mode := t.mode
	if old != nil {
		set(&mode, old.Mode&0o777)
	}
	set(&mode, defaultMode)
	temp := path.Join(path.Dir(target), tempName(path.Base(target)))
	f, _, err := t.guest.Open(ctx, guest.FileRequest{
		Path: temp, User: t.user, Mode: mode, Parents: true,
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW,
	})
	if old != nil && isGuestCode(err, guest.CodePermission) {
		// The user may write the file but not its directory, as many an editor finds: then in place, as an editor does.
		return t.overwrite(ctx, target, body, length)
	}
	if err != nil {
		return err
	}
	err = fill(f, body, length)
	if err == nil {
		err = f.Chmod(os.FileMode(mode)) // the guest's umask may have taken bits
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = t.guest.Rename(ctx, guest.FileRequest{Path: temp, Target: target, User: t.user})
	}
	if err != nil {
		// Also when the client is gone, and ctx with it.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if rerr := t.guest.Remove(undo, t.request(temp)); rerr != nil {
			err = fmt.Errorf("%w (and %.100q stays: %w)", err, temp, rerr)
		}
	}
	return err
}

func (t fileTarget) overwrite(ctx context.Context, target string, body io.Reader, length int64) error {
	f, _, err := t.guest.Open(ctx, guest.FileRequest{Path: target, User: t.user, Flags: unix.O_WRONLY | unix.O_TRUNC})
	if err != nil {
		return err
	}
	err = fill(f, body, length)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// follow returns the path that a write to t.path ends at, symlinks followed, and what is there; nil where there is
// nothing. It is a convenience, not a check: the guest resolves every path again, inside, as the user.
func (t fileTarget) follow(ctx context.Context) (string, *guest.FileInfo, error) {
	p := t.path
	for range maxLinks {
		info, err := t.guest.Stat(ctx, t.request(p))
		if isGuestCode(err, guest.CodeNotFound) {
			return p, nil, nil
		}
		if err != nil {
			return "", nil, err
		}
		switch info.Type {
		case typeFile:
			return info.Path, &info, nil
		case typeSymlink:
			if p = info.Target; !path.IsAbs(p) {
				p = path.Dir(info.Path) + "/" + p // not cleaned: a/../b is not b where a is a symlink
			}
		case typeDir:
			return "", nil, api.Errorf(http.StatusBadRequest, guest.CodeIsDir, "%.200q is a directory", t.path)
		default:
			return "", nil, invalid("path: %.200q is no regular file", t.path)
		}
	}
	return "", nil, api.Errorf(http.StatusBadRequest, guest.CodeLoop, "%.200q has more than %d symlinks", t.path, maxLinks)
}

// fill copies a body of a known (or, with -1, unknown) length into a file.
func fill(f *os.File, body io.Reader, length int64) error {
	w := disk.NewWriter(f)
	got, err := copyBuffered(w, body)
	if err == nil {
		err = w.Finish()
	}
	if err == nil && length >= 0 && got != length {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = invalid("the body ended after %d bytes", got)
	}
	return err
}

// tempName returns the name of a temporary file beside name.
func tempName(name string) string {
	var r [6]byte
	_, _ = rand.Read(r[:]) // never fails
	if len(name) > 200 {
		name = name[:200] // a component has at most 255 bytes
	}
	return "." + name + ".soulbox-" + hex.EncodeToString(r[:])
}

func isGuestCode(err error, code string) bool {
	var body *frame.ErrorBody
	return errors.As(err, &body) && body.Code == code
}

// idleReader gives up on a body of which no byte has come for ioIdle.
type idleReader struct {
	r  io.Reader
	rc *http.ResponseController
}

func (i idleReader) Read(p []byte) (int, error) {
	if err := i.rc.SetReadDeadline(time.Now().Add(ioIdle)); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}

// idleWriter gives up on a client that takes no byte for ioIdle.
type idleWriter struct {
	w  io.Writer
	rc *http.ResponseController
}

func (i idleWriter) Write(p []byte) (int, error) {
	if err := i.rc.SetWriteDeadline(time.Now().Add(ioIdle)); err != nil {
		return 0, err
	}
	return i.w.Write(p)
}

// ReadFrom copies with a buffer of the pool: the API's connections are unix sockets and TLS, for neither of which the
// server can have the kernel send a file.
func (i idleWriter) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	buf := buffers.Get().(*[]byte) //nolint:forcetypeassert // the pool's own type
	defer buffers.Put(buf)
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			w, werr := i.Write((*buf)[:n])
			total += int64(w)
			if werr != nil {
				return total, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
