package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/disk"
	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// undoTimeout is how long it may take to remove what was begun, when the client may be gone already.
const undoTimeout = 10 * time.Second

// Mode bits of new files, before the umask, of PID 1's which is 022.
const newMode = 0o666

// replacement is a file that is being written. Until commit nothing of it is seen under its own name.
type replacement struct {
	user   place.User
	asked  string       // the path that the client named, made absolute
	target string       // where it ends up, symlinks followed
	claim  bool         // the user may write the file, or may have one there, though not in the directory: see guest.FileRequest
	temp   string       // empty: target is written in place
	mode   uint32       // of the file that was there; 0: none was
	chosen *os.FileMode // by the client; nil: the old one, or that of new files
	f      *os.File
}

// begin makes the temporary file, and missing directories.
func begin(ctx context.Context, u place.User, p string) (*replacement, error) {
	if strings.HasSuffix(p, "/") {
		return nil, fail(http.StatusBadRequest, "%s", place.IsDirectory(p))
	}
	r := &replacement{user: u, asked: p, target: p}
	switch e, err := u.Sandbox.Guest.Entry(ctx, u.Request(p)); {
	case place.Is(err, guest.CodeNotFound):
	case err != nil:
		return nil, &pathError{p, err}
	case e.Type == "directory":
		return nil, fail(http.StatusBadRequest, "%s", place.IsDirectory(p))
	case e.Type == "other":
		return nil, fail(http.StatusBadRequest, "path '%s' is not a regular file", p)
	default:
		if e.Target != "" {
			r.target = e.Target // it is resolved again inside, as the user, whatever it says
		}
		if e.Type == "file" {
			r.mode = 1<<31 | e.Mode&0o777
		}
	}
	dir, _ := path.Split(r.target)
	r.temp = dir + guest.TempName(r.mode != 0)
	req := u.Request(r.temp)
	req.Flags, req.Mode, req.Parents = unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, newMode, true
	if r.mode != 0 {
		r.claim, req.Target = true, r.target
	} else {
		r.claim = place.Claims(p)
	}
	req.Claim = r.claim
	var err error
	r.f, _, err = u.Sandbox.Guest.Open(ctx, req)
	if r.mode != 0 && place.Is(err, guest.CodePermission) {
		// What is left are files that cannot be replaced: behind a symlink into a directory that is closed to the user, or in a sandbox
		// whose PID 1 is older. Those that the user may write are written in place, as an editor does.
		r.temp = ""
		req := u.Request(r.target)
		req.Flags = unix.O_WRONLY
		r.f, _, err = u.Sandbox.Guest.Open(ctx, req)
	}
	if err != nil {
		return nil, &pathError{p, err}
	}
	if r.temp == "" {
		if err := r.f.Truncate(0); err != nil {
			_ = r.f.Close()
			return nil, err
		}
	}
	return r, nil
}

// fill writes the content and all else that the file has, and closes it. Where it fails, undo has been done.
func (r *replacement) fill(body io.Reader, metadata map[string]string) error {
	if h, ok := body.(handed); ok {
		return r.finish(h.writeInto(r.f), metadata)
	}
	buf, ok := buffers.Get().(*[]byte)
	if !ok {
		return errBroken
	}
	w := disk.NewWriter(r.f)
	_, err := io.CopyBuffer(w, struct{ io.Reader }{body}, *buf)
	buffers.Put(buf)
	if err == nil {
		err = w.Finish()
	}
	return r.finish(err, metadata)
}

func (r *replacement) finish(err error, metadata map[string]string) error {
	if err == nil && r.chosen != nil {
		err = r.f.Chmod(*r.chosen)
	} else if err == nil && r.temp != "" && r.mode != 0 {
		err = r.f.Chmod(os.FileMode(r.mode & 0o777))
	}
	if err == nil && (metadata != nil || r.temp == "") {
		err = setMetadata(r.f, metadata)
	}
	if cerr := r.f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		err = errors.Join(err, r.undo())
	}
	return err
}

// commit puts the file in its place.
func (r *replacement) commit(ctx context.Context) error {
	if r.temp == "" {
		return nil
	}
	req := r.user.Request(r.temp)
	req.Target, req.Claim = r.target, r.claim
	err := r.user.Sandbox.Guest.Rename(ctx, req)
	if err != nil {
		err = errors.Join(&pathError{r.asked, err}, r.undo())
	}
	return err
}

// undo removes the temporary file, also when the client is gone.
func (r *replacement) undo() error {
	if r.temp == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	req := r.user.Request(r.temp)
	req.Claim = r.claim
	if err := r.user.Sandbox.Guest.Remove(ctx, req); err != nil && place.Reported(err) {
		return fmt.Errorf("%.100q stays: %w", r.temp, err)
	}
	return nil
}
