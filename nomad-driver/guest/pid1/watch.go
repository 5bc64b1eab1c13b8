package pid1

import (
	"encoding/json"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// watches are the watches under way.
type watches struct {
	mu    sync.Mutex
	all   map[*watch]struct{}
	ended bool
}

// watchMask is what is heard of. Reading is no change, and neither is closing.
const watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// watch is one watch of a directory. Its conversation's goroutine owns it. What is not taken by the client waits in the
// kernel's queue, which is bounded and says when it has overflowed; so nothing queues here.
type watch struct {
	req  *guest.WatchRequest
	f    *os.File // the inotify descriptor
	fd   int
	root string
	dirs map[int32]string // directory of a watch descriptor, relative to root; "" is root

	found    map[string]bool // reported by a scan; the kernel's own event of it may still come
	fresh    bool            // found has grown since the last read
	moved    uint32          // cookie of an upload's rename, and whether it replaces
	replaces bool
	overflow bool
	out      []guest.WatchEvent
}

// watch has one watch's conversation.
func (f *files) watch(c *conn, req *guest.WatchRequest) {
	u, a, err := f.lookup(req.User)
	var path string
	if err == nil {
		path, err = checkPath("watch.path", req.Path, u)
	}
	var w *watch
	if err == nil {
		w, err = newWatch(req, path)
	}
	if err != nil {
		c.fail(failBody(err))
		return
	}
	defer w.f.Close()
	if !f.watches.add(w) {
		c.fail(fail(guest.CodeLimit, "more than %d watches in this sandbox", guest.MaxWatches))
		return
	}
	defer f.watches.remove(w)
	if err := f.workers.as(u, w.begin); err != nil {
		c.fail(failFile("watch", path, err))
		return
	}
	w.out, w.found = nil, nil // what is there is no event
	if frame.WriteJSON(c.f, frame.Response, guest.Response{Version: guest.ProtocolVersion}) != nil {
		return
	}
	c.during(func() { w.run(c, f.workers, u, a) }, func() {
		w.f.Close()
		c.f.SetWriteDeadline(time.Unix(1, 0))
	})
}

func (w *watches) add(one *watch) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended || len(w.all) >= guest.MaxWatches {
		return false
	}
	if w.all == nil {
		w.all = map[*watch]struct{}{}
	}
	w.all[one] = struct{}{}
	return true
}

func (w *watches) remove(one *watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one)
}

// endWatches ends all watches: the sandbox has ended.
func (f *files) endWatches() {
	f.watches.mu.Lock()
	defer f.watches.mu.Unlock()
	f.watches.ended = true
	for w := range f.watches.all {
		w.f.Close()
	}
}

func newWatch(req *guest.WatchRequest, path string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, failFile("watch", path, err)
	}
	return &watch{req: req, f: pollable(fd, "watch"), fd: fd, root: path, dirs: map[int32]string{}}, nil
}

// begin sets the watch up, as its user.
func (w *watch) begin() error {
	fd, err := openAt(w.root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if networkFS(fs.Type) && !w.req.Network {
		return fail(guest.CodeNetwork, "watch %q: it is on a network file system, whose other users' changes are not seen", w.root)
	}
	if err := w.add(fd, ""); err != nil {
		return err
	}
	if w.req.Recursive {
		if err := w.scan(fd, "", true); err != nil {
			return err
		}
	}
	return nil
}

// networkFS reports whether files of a file system may change without this kernel's doing.
func networkFS(kind int64) bool {
	switch uint32(kind) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC, unix.CODA_SUPER_MAGIC, unix.NCP_SUPER_MAGIC,
		unix.OCFS2_SUPER_MAGIC:
		return true
	}
	return false
}

// add watches an open directory. It is named by its descriptor: a path might be another directory's by now.
func (w *watch) add(dir int, rel string) error {
	if len(w.dirs) >= guest.MaxWatchDirs {
		return fail(guest.CodeLimit, "watch %q: more than %d directories", w.root, guest.MaxWatchDirs)
	}
	wd, err := unix.InotifyAddWatch(w.fd, fdPath(dir), watchMask)
	if err == unix.ENOSPC {
		return fail(guest.CodeLimit, "watch %q: the kernel's limit of watches is reached after %d directories", w.root, len(w.dirs))
	}
	if err != nil {
		return err
	}
	w.dirs[int32(wd)] = rel
	return nil
}

// scan watches every directory below an open one. What it finds is reported where the directory is new: it was made before
// there was a watch to see it. Only a limit is an error: what cannot be read or goes away meanwhile is not watched.
func (w *watch) scan(dir int, rel string, quiet bool) error {
	own, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	d := os.NewFile(uintptr(own), rel)
	defer d.Close()
	for {
		list, err := d.Readdirnames(1024)
		for _, name := range list {
			if err := w.scanned(own, joinRel(rel, name), name, quiet); err != nil {
				return err
			}
		}
		if err != nil || len(list) == 0 {
			return nil
		}
	}
}

func (w *watch) scanned(dir int, rel, name string, quiet bool) error {
	if _, temp := guest.IsTempName(name); temp {
		return nil
	}
	if !quiet {
		if w.found == nil {
			w.found = map[string]bool{}
		}
		if len(w.found) >= guest.MaxEntries {
			return fail(guest.CodeLimit, "watch %q: more than %d files at once", w.root, guest.MaxEntries)
		}
		w.found[rel], w.fresh = true, true
		w.report(rel, guest.WatchCreate)
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if len(rel) >= unix.PathMax {
		return fail(guest.CodeLimit, "watch %q: a path of more than %d bytes", w.root, unix.PathMax)
	}
	if err := w.add(fd, rel); err != nil {
		return keepLimit(err)
	}
	return w.scan(fd, rel, quiet)
}

// keepLimit keeps the errors that say that a watch has become incomplete.
func keepLimit(err error) error {
	if _, limit := err.(*frame.ErrorBody); limit {
		return err
	}
	return nil
}

func joinRel(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (w *watch) report(rel, kind string) {
	w.out = append(w.out, guest.WatchEvent{Name: rel, Kind: kind})
}

// run reports events until the client leaves or the sandbox ends.
func (w *watch) run(c *conn, pool *workers, u guest.UserInfo, a accounts) {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil || n <= 0 {
			return
		}
		err = pool.as(u, func() error {
			w.take(buf[:n])
			if w.req.Entries {
				w.describe(a)
			}
			return nil
		})
		if err != nil {
			c.fail(failFile("watch", w.root, err))
			return
		}
		if n < len(buf)/2 && !w.fresh {
			w.found = nil // this read has emptied the queue: nothing of the time of the scans is left in it
		}
		w.fresh = false
		if !w.send(c) {
			return
		}
	}
}

// take makes events of what the kernel says, as the watch's user.
func (w *watch) take(buf []byte) {
	for len(buf) > 0 {
		var e rawEvent
		var ok bool
		if e, buf, ok = nextEvent(buf); !ok {
			return
		}
		if e.mask&unix.IN_Q_OVERFLOW != 0 {
			w.overflow = true
			continue
		}
		dir, known := w.dirs[e.wd]
		if !known {
			continue
		}
		if e.mask&unix.IN_IGNORED != 0 {
			delete(w.dirs, e.wd)
			continue
		}
		if e.name == "" {
			if dir == "" { // of other directories the one above tells
				w.self(e.mask)
			}
			continue
		}
		if !w.upload(dir, e) {
			w.event(joinRel(dir, e.name), e)
		}
	}
}

func (w *watch) self(mask uint32) {
	switch {
	case mask&unix.IN_DELETE_SELF != 0:
		w.report(".", guest.WatchRemove)
	case mask&unix.IN_MOVE_SELF != 0:
		w.report(".", guest.WatchRename)
	}
}

// upload hides the temporary files of uploads: the rename at the end is reported as the write, or the creation, that it
// is to whoever watches.
func (w *watch) upload(dir string, e rawEvent) bool {
	if replaces, temp := guest.IsTempName(e.name); temp {
		if e.mask&unix.IN_MOVED_FROM != 0 {
			w.moved, w.replaces = e.cookie, replaces
		}
		return e.mask&unix.IN_MOVED_TO == 0
	}
	if e.mask&unix.IN_MOVED_TO == 0 || e.cookie == 0 || e.cookie != w.moved {
		return false
	}
	w.moved = 0
	rel := joinRel(dir, e.name)
	if !w.replaces {
		w.report(rel, guest.WatchCreate)
	}
	w.report(rel, guest.WatchWrite)
	return true
}

func (w *watch) event(rel string, e rawEvent) {
	isDir := e.mask&unix.IN_ISDIR != 0
	switch {
	case e.mask&unix.IN_CREATE != 0:
		if w.found[rel] {
			delete(w.found, rel)
		} else {
			w.report(rel, guest.WatchCreate)
		}
		if isDir {
			w.enter(rel, false)
		}
	case e.mask&unix.IN_MOVED_TO != 0:
		w.report(rel, guest.WatchCreate)
		if isDir {
			w.enter(rel, true)
		}
	case e.mask&unix.IN_MODIFY != 0:
		w.report(rel, guest.WatchWrite)
	case e.mask&unix.IN_DELETE != 0:
		delete(w.found, rel)
		w.report(rel, guest.WatchRemove)
	case e.mask&unix.IN_MOVED_FROM != 0:
		delete(w.found, rel)
		w.report(rel, guest.WatchRename)
		if isDir {
			w.leave(rel)
		}
	case e.mask&unix.IN_ATTRIB != 0:
		w.report(rel, guest.WatchChmod)
	}
}

// enter watches a directory that has come, and all below.
func (w *watch) enter(rel string, quiet bool) {
	if !w.req.Recursive {
		return
	}
	fd, err := openAt(joinPath(w.root, rel), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if err = keepLimit(w.add(fd, rel)); err == nil {
		err = w.scan(fd, rel, quiet)
	}
	if err != nil {
		w.overflow = true
	}
}

// leave stops watching a directory that has gone elsewhere, and all below.
func (w *watch) leave(rel string) {
	for wd, dir := range w.dirs {
		if dir == rel || len(dir) > len(rel) && dir[:len(rel)] == rel && dir[len(rel)] == '/' {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
			delete(w.dirs, wd)
		}
	}
}

// describe adds what the files are now, as the watch's user. Of what has gone there is nothing to say.
func (w *watch) describe(a accounts) {
	n := a.names()
	for i := range w.out {
		e := &w.out[i]
		if e.Kind == guest.WatchRemove || e.Kind == guest.WatchRename {
			continue
		}
		if entry, err := entryOf(joinPath(w.root, e.Name), n); err == nil {
			e.Entry = &entry
		}
	}
}

// send sends what has been reported in as many frames as it takes. It waits for the client to read.
func (w *watch) send(c *conn) bool {
	out := w.out
	w.out = nil
	for len(out) > 0 || w.overflow {
		n := min(len(out), 500)
		for {
			body, err := json.Marshal(guest.WatchEvents{Events: out[:n], Overflow: w.overflow})
			if err != nil {
				return false
			}
			if len(body) > frame.MaxPayload && n > 1 {
				n /= 2
				continue
			}
			if frame.Write(c.f, frame.Events, body) != nil {
				return false
			}
			break
		}
		out, w.overflow = out[n:], false
	}
	return true
}

// rawEvent is one event of the kernel's.
type rawEvent struct {
	wd           int32
	mask, cookie uint32
	name         string
}
