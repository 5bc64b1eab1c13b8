package node

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Bounds of an archive, in either direction. Its bytes are bounded by the sandbox's own disk.
const (
	maxArchiveEntries = 500_000
	maxArchiveDepth   = 128
	// What a node holds in memory for one archive: directory entries at a time, and bytes of names.
	maxHeldEntries  = 50_000
	maxArchiveNames = 64 << 20
)

// getArchive sends a file or a directory as tar. An error in the middle goes into ErrorTrailer, and an entry that is cut
// short makes any tar program notice too.
func (n *Node) getArchive(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	root, err := t.guest.Stat(r.Context(), t.request(t.path))
	if err != nil {
		return guestGone(t.box, err)
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", nodeapi.ErrorTrailer)
	w.WriteHeader(http.StatusOK)
	out := idleWriter{w: w, rc: http.NewResponseController(w)}
	p := packer{target: t, tw: tar.NewWriter(out)}
	name := path.Base(root.Path)
	if name == "/" {
		name = "."
	}
	err = p.add(r.Context(), root, name, 1)
	if err == nil {
		err = p.tw.Close()
	}
	if err != nil && r.Context().Err() == nil {
		b, _ := json.Marshal(apiError(guestGone(t.box, err)))
		w.Header().Set(nodeapi.ErrorTrailer, string(b))
		_ = tar.NewWriter(out).WriteHeader(&tar.Header{Name: "BROKEN-OFF", Mode: 0o600, Size: 1, Typeflag: tar.TypeReg})
	}
	return nil
}

// packer writes files of a sandbox into a tar.
type packer struct {
	target  fileTarget
	tw      *tar.Writer
	entries int
	held    int // directory entries in memory, of all the levels that are open
}

// add writes what info describes, and everything in it.
func (p *packer) add(ctx context.Context, info guest.FileInfo, name string, depth int) error {
	if p.entries++; p.entries > maxArchiveEntries {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "more than %d files", maxArchiveEntries)
	}
	if depth > maxArchiveDepth {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "%.100q… is deeper than %d directories", name, maxArchiveDepth)
	}
	h := &tar.Header{
		Name: name, Mode: int64(info.Mode & 0o777), ModTime: info.ModTime.Truncate(time.Microsecond), Format: tar.FormatPAX,
		Uid: int(info.UID), Gid: int(info.GID), Uname: info.Owner, Gname: info.Group,
	}
	switch info.Type {
	case typeDir:
		return p.addDir(ctx, info, h, depth)
	case typeFile:
		return p.addFile(ctx, info, h)
	case typeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, info.Target
		return p.tw.WriteHeader(h)
	default:
		return nil // sockets, FIFOs and devices have no content to copy
	}
}

func (p *packer) addDir(ctx context.Context, info guest.FileInfo, h *tar.Header, depth int) error {
	h.Typeflag = tar.TypeDir
	name := h.Name
	h.Name += "/"
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	list, err := p.target.guest.ReadDir(ctx, p.target.request(info.Path))
	if err != nil {
		return err
	}
	if len(list) >= guest.MaxDirEntries {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "%.200q has %d entries or more", info.Path, guest.MaxDirEntries)
	}
	if p.held += len(list); p.held > maxHeldEntries {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "more than %d entries in the directories above %.200q", maxHeldEntries, info.Path)
	}
	defer func() { p.held -= len(list) }()
	for _, child := range list {
		// The name is the sandbox's word: it must not lead out of the archive's own tree at the other end.
		if !goodName(child.Name) {
			return fmt.Errorf("%w: file name %.100q", guest.ErrBadAnswer, child.Name)
		}
		child.Path = path.Join(info.Path, child.Name)
		if err := p.add(ctx, child, path.Join(name, child.Name), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func goodName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

func (p *packer) addFile(ctx context.Context, info guest.FileInfo, h *tar.Header) error {
	f, opened, err := openRegular(ctx, p.target, info.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	h.Typeflag, h.Size = tar.TypeReg, opened.Size
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(p.tw, f, h.Size); err != nil {
		if errors.Is(err, io.EOF) {
			err = api.Errorf(http.StatusConflict, api.CodeConflict, "%.200q became shorter while it was read", info.Path)
		}
		return err
	}
	return nil
}

// putArchive unpacks a tar below a directory.
func (n *Node) putArchive(w http.ResponseWriter, r *http.Request) error {
	t, err := n.fileTarget(r)
	if err != nil {
		return err
	}
	root, err := t.guest.Mkdir(r.Context(), guest.FileRequest{Path: t.path, User: t.user, Parents: true})
	if err != nil {
		return guestGone(t.box, err)
	}
	u := unpacker{target: t, root: root.Path, made: map[string]byte{}}
	if err := u.unpack(r.Context(), idleReader{r: r.Body, rc: http.NewResponseController(w)}); err != nil {
		return guestGone(t.box, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// unpacker writes a tar that nobody trusts into a sandbox, as a user of it. What a name can reach is bounded by the guest,
// which resolves it inside; the unpacker sees to it that an archive stays below the directory that the caller named.
type unpacker struct {
	target fileTarget
	root   string
	made   map[string]byte // what this archive made at a clean name: its tar type
	names  int             // bytes of the names in made
}

func (u *unpacker) unpack(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20)) // padding behind the end
			return err
		}
		if err != nil {
			return badArchive(err)
		}
		if entries >= maxArchiveEntries {
			return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "archive: more than %d entries", maxArchiveEntries)
		}
		if err := u.entry(ctx, h, tr); err != nil {
			return fmt.Errorf("archive: %.200q: %w", h.Name, err)
		}
	}
}

func badArchive(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return invalid("archive: %v", err)
	}
	return err
}

// clean returns an entry's name relative to the root, or why it is refused.
func (u *unpacker) clean(name string) (string, error) {
	if name == "" || len(name) > maxPath || strings.ContainsRune(name, 0) {
		return "", invalid("a name must have 1 to %d bytes and no NUL", maxPath)
	}
	if path.IsAbs(name) {
		return "", invalid("an absolute name")
	}
	parts := strings.Split(strings.TrimSuffix(name, "/"), "/")
	for _, c := range parts {
		if c == ".." {
			return "", invalid("a name with ..")
		}
	}
	rel := path.Clean(name)
	if strings.Count(rel, "/") >= maxArchiveDepth {
		return "", api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "deeper than %d directories", maxArchiveDepth)
	}
	// A symlink of the archive itself must not redirect what follows it.
	for dir := path.Dir(rel); dir != "."; dir = path.Dir(dir) {
		if u.made[dir] == tar.TypeSymlink {
			return "", invalid("goes through the symlink %.100q of the same archive", dir)
		}
	}
	return rel, nil
}

func (u *unpacker) entry(ctx context.Context, h *tar.Header, body io.Reader) error {
	rel, err := u.clean(h.Name)
	if err != nil {
		return err
	}
	abs := path.Join(u.root, rel)
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.dir(ctx, abs, rel, h)
	case tar.TypeReg, '\x00': // the old form of a regular file
		err = u.file(ctx, abs, h, body, h.Size)
	case tar.TypeSymlink:
		err = u.symlink(ctx, abs, h.Linkname)
	case tar.TypeLink:
		err = u.link(ctx, abs, h)
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return invalid("type %q; an archive may hold files, directories and links", string(h.Typeflag))
	}
	if u.names += len(rel); u.names > maxArchiveNames {
		return api.Errorf(http.StatusRequestEntityTooLarge, api.CodeTooLarge, "more than %d bytes of names", maxArchiveNames)
	}
	if err == nil && rel != "." {
		u.made[rel] = h.Typeflag
	}
	return err
}

func (u *unpacker) dir(ctx context.Context, abs, rel string, h *tar.Header) error {
	if rel == "." {
		return nil
	}
	if u.made[rel] == tar.TypeSymlink {
		return invalid("was a symlink before")
	}
	mode := uint32(h.Mode) & 0o777
	_, err := u.target.guest.Mkdir(ctx, guest.FileRequest{Path: abs, User: u.target.user, Mode: mode | 0o700, Parents: true})
	return err
}

// file writes a new file, or replaces one that exists by a new one. Setuid and setgid bits are dropped, owners are the
// user's.
func (u *unpacker) file(ctx context.Context, abs string, h *tar.Header, body io.Reader, size int64) error {
	mode := uint32(h.Mode) & 0o777
	req := guest.FileRequest{
		Path: abs, User: u.target.user, Mode: max(mode, 0o400), Parents: true,
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW,
	}
	f, _, err := u.target.guest.Open(ctx, req)
	if isGuestCode(err, guest.CodeExists) {
		if err := u.makeRoom(ctx, abs); err != nil {
			return err
		}
		f, _, err = u.target.guest.Open(ctx, req)
	}
	if err != nil {
		return err
	}
	err = fill(f, body, size)
	if err == nil {
		err = f.Chmod(os.FileMode(mode))
	}
	if err == nil && h.ModTime.Unix() > 0 {
		ts := unix.NsecToTimespec(h.ModTime.UnixNano())
		err = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), []unix.Timespec{ts, ts}, 0)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (u *unpacker) symlink(ctx context.Context, abs, target string) error {
	if err := checkPath("target", target); err != nil {
		return err
	}
	req := guest.FileRequest{Path: abs, Target: target, User: u.target.user}
	err := u.target.guest.Symlink(ctx, req)
	if isGuestCode(err, guest.CodeNotFound) { // an archive need not name the directories of its entries
		if _, err := u.target.guest.Mkdir(ctx, guest.FileRequest{Path: path.Dir(abs), User: u.target.user, Parents: true}); err != nil {
			return err
		}
		err = u.target.guest.Symlink(ctx, req)
	}
	if isGuestCode(err, guest.CodeExists) {
		if err := u.makeRoom(ctx, abs); err != nil {
			return err
		}
		err = u.target.guest.Symlink(ctx, req)
	}
	return err
}

// link makes a copy of a file that the same archive brought: the guest has no hard links, and two files of the same
// content are what the archive's reader sees.
func (u *unpacker) link(ctx context.Context, abs string, h *tar.Header) error {
	rel, err := u.clean(h.Linkname)
	if err != nil {
		return fmt.Errorf("link to %.200q: %w", h.Linkname, err)
	}
	if t := u.made[rel]; t != tar.TypeReg && t != tar.TypeLink && t != '\x00' || t == 0 && !u.has(rel) {
		return invalid("a hard link to %.200q, which is no file of the same archive", h.Linkname)
	}
	f, info, err := openRegular(ctx, u.target, path.Join(u.root, rel))
	if err != nil {
		return err
	}
	defer f.Close()
	c := *h
	c.Mode, c.ModTime = int64(info.Mode), info.ModTime
	return u.file(ctx, abs, &c, io.LimitReader(f, info.Size), info.Size)
}

func (u *unpacker) has(rel string) bool {
	_, ok := u.made[rel]
	return ok
}

// makeRoom removes what an entry replaces. A directory is not replaced by something else, as with tar.
func (u *unpacker) makeRoom(ctx context.Context, abs string) error {
	info, err := u.target.guest.Stat(ctx, u.target.request(abs))
	if isGuestCode(err, guest.CodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Type == typeDir {
		return api.Errorf(http.StatusConflict, guest.CodeIsDir, "a directory is in its place")
	}
	return u.target.guest.Remove(ctx, u.target.request(abs))
}
