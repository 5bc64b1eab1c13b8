package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// Limits of watches.
const (
	MaxWatches   = 64   // watches of a sandbox at the same time
	MaxWatchDirs = 8192 // directories that one watch looks at
)

// WatchRequest asks for what happens to the files of a directory.
type WatchRequest struct {
	Path      string `json:"path"` // as in FileRequest
	User      string `json:"user,omitempty"`
	Recursive bool   `json:"recursive,omitempty"`
	Entries   bool   `json:"entries,omitempty"` // describe the file of each event, where it is still there
	Network   bool   `json:"network,omitempty"` // also on a network file system, where only changes from inside are seen
}

// WatchEvents is what a watch has seen since the last. Overflow says that events were lost before those of this frame: more
// happened than the kernel's queue holds, or there are more directories than a watch may have.
type WatchEvents struct {
	Events   []WatchEvent `json:"events,omitempty"`
	Overflow bool         `json:"overflow,omitempty"`
}

// WatchEvent is one change. Name is relative to the watched directory, or "." for the directory itself.
type WatchEvent struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"` // one of the Watch* words
	Entry *Entry `json:"entry,omitempty"`
}

// What may have happened to a file.
const (
	WatchCreate = "create" // made, or moved here
	WatchWrite  = "write"
	WatchRemove = "remove"
	WatchRename = "rename" // moved away from this name
	WatchChmod  = "chmod"  // permissions, owner, times or attributes changed
)

// Watch is a watch under way. One goroutine may call Recv; Close ends the watch from any.
type Watch struct {
	conn net.Conn
	r    *frame.Reader
}

// Watch begins to watch a directory. ctx bounds the beginning only; close the watch to end it.
func (c *Client) Watch(ctx context.Context, w WatchRequest) (*Watch, error) {
	v, err := c.dial(ctx, Request{Op: OpWatch, Watch: &w})
	if err != nil {
		return nil, err
	}
	r := frame.NewReader(bufio.NewReader(v.conn))
	if _, err := readResponse(r); err != nil {
		return nil, v.fail(err)
	}
	if err := v.settled(); err != nil {
		return nil, err
	}
	return &Watch{conn: v.conn, r: r}, nil
}

// Recv waits for the next events. It ends with io.EOF where the sandbox has ended, and with net.ErrClosed after Close.
func (w *Watch) Recv() (WatchEvents, error) {
	var e WatchEvents
	if err := w.r.ReadJSON(frame.Events, &e); err != nil {
		var body *frame.ErrorBody
		if errors.As(err, &body) {
			return WatchEvents{}, checkError(body)
		}
		return WatchEvents{}, err
	}
	for i := range e.Events {
		ev := &e.Events[i]
		switch ev.Kind {
		case WatchCreate, WatchWrite, WatchRemove, WatchRename, WatchChmod:
		default:
			return WatchEvents{}, fmt.Errorf("guest %s: %w: event %.20q", OpWatch, ErrBadAnswer, ev.Kind)
		}
		if len(ev.Name) > 16<<10 || ev.Name == "" || strings.HasPrefix(ev.Name, "/") {
			return WatchEvents{}, fmt.Errorf("guest %s: %w: event of %.80q", OpWatch, ErrBadAnswer, ev.Name)
		}
		if ev.Entry != nil {
			if err := checkEntry(OpWatch, ev.Entry); err != nil {
				return WatchEvents{}, err
			}
		}
	}
	return e, nil
}

// Close ends the watch.
func (w *Watch) Close() error { return w.conn.Close() }
