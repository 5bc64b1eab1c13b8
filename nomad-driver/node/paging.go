package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint"
	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
	"github.com/soulbox-dev/soulbox/nomad-driver/sandbox"
)

const (
	pagesDir = "pages" // of the page server, beside the checkpoint whose images it serves
	// pagesGrace bounds how long a page server may take to see that nobody is left.
	pagesGrace = 10 * time.Second
)

// paging is the rest of a restored sandbox's memory on its way.
type paging struct {
	server *checkpoint.Pages
	ending atomic.Bool // its processes have ended
	// snapshot is what the sandbox was restored from, to whose note is added what it has touched; nil: no snapshot that is restored again.
	snapshot *chunk.Manifest
	done     chan struct{} // closed when every page is there, or the sandbox has none any more
	err      error         // set before
}

// lazily says how memory comes after a restore from the images in home. Nothing is left there of a page server of before.
func (n *Node) lazily(home string) (*sandbox.Lazy, error) {
	if n.engine == nil || n.engine.Lazy() != nil {
		return nil, nil
	}
	return &sandbox.Lazy{Dir: filepath.Join(home, pagesDir)}, n.clearPages(home)
}

// clearPages ends the page server in home, whose sandbox has no process any more.
func (n *Node) clearPages(home string) error {
	dir := filepath.Join(home, pagesDir)
	p, err := checkpoint.FindPages(n.initProgram, dir)
	if err == nil && p != nil {
		err = errors.Join(p.End(), p.Close())
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// restored restores a sandbox, with memory that comes later, or else at once.
func (n *Node) restored(ctx context.Context, rt restorer, b *box, home string, first *checkpoint.Touched, c sandbox.RestoreConfig) (instance, error) {
	var err error
	if c.Lazy, err = n.lazily(home); err != nil {
		return nil, err
	}
	if c.Lazy != nil {
		c.Lazy.First, c.Lazy.Watch = first, b.snapshot != nil && first == nil
	}
	inst, err := rt.Restore(ctx, c)
	if err == nil || !errors.Is(err, checkpoint.ErrLazy) || ctx.Err() != nil {
		return inst, err
	}
	n.log.Warn("sandbox is restored with all of its memory at once", "sandbox", b.id, "error", err)
	n.loseSlot(b)
	c.Lazy = nil
	if err := n.clearPages(home); err != nil {
		return nil, err
	}
	return rt.Restore(ctx, c)
}

// pagesOf returns the page server of a sandbox that was just restored; nil: it has all of its memory.
func pagesOf(inst instance) *checkpoint.Pages {
	if p, ok := inst.(interface{ Pages() *checkpoint.Pages }); ok {
		return p.Pages()
	}
	return nil
}

// removeImages removes a checkpoint that is of the past: at once for whoever makes the next one, and in the background from the disk. What a daemon that is
// killed meanwhile leaves of it belongs to no sandbox, and is swept.
func (n *Node) removeImages(b *box) {
	gone := filepath.Join(n.path("checkpoints"), fmt.Sprintf(".%s.%d", b.id, n.removed.Add(1)))
	err := os.Rename(n.checkpointDir(b.id), gone)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err = errors.Join(err, sandbox.ForgetNames(filepath.Join(n.path("sandboxes"), string(b.id)))); err != nil {
		n.log.Warn("old checkpoint stays", "sandbox", b.id, "error", err)
		return
	}
	n.wg.Go(func() {
		if err := os.RemoveAll(gone); err != nil {
			n.log.Warn("old checkpoint stays until this daemon starts again", "sandbox", b.id, "error", err)
		}
	})
}

// page follows a page server to its end, and removes the images then. snapshot is what they are of, or nil.
func (n *Node) page(b *box, inst instance, server *checkpoint.Pages, snapshot *chunk.Manifest) {
	p := &paging{server: server, snapshot: snapshot, done: make(chan struct{})}
	b.mu.Lock()
	b.paging = p
	b.mu.Unlock()
	n.wg.Go(func() {
		defer close(p.done)
		begin := time.Now()
		if p.err = server.Wait(n.ctx); p.err != nil && n.ctx.Err() != nil {
			return // it goes on without this daemon
		}
		if p.err != nil && !p.ending.Load() {
			n.loseMemory(b, inst, p)
		}
		if p.err == nil && p.snapshot != nil {
			n.noteTouched(p.snapshot, server.Touched())
		}
		n.removeImages(b) // before anybody may put the next checkpoint in their place
		b.mu.Lock()
		b.paging = nil
		b.mu.Unlock()
		n.log.Debug("memory is there", "sandbox", b.id, "took", time.Since(begin), "faults", server.Faults())
		if err := server.Close(); err != nil {
			n.log.Warn("list of pages stays mapped", "sandbox", b.id, "error", err)
		}
	})
}

// loseMemory ends a sandbox that never gets the rest of its memory. Until it has ended the keeper stays, so that nothing of it runs on with zeros.
func (n *Node) loseMemory(b *box, inst instance, p *paging) {
	n.log.Error("sandbox is ended: the rest of its memory never comes", "sandbox", b.id, "error", p.err)
	n.note(b, logbook.Error, "sandbox ended: the rest of its memory after a resume never comes", map[string]string{"error": p.err.Error()})
	n.beginStop(b, stopIntent{Reason: nodeapi.ExitMemoryLost, KillAt: time.Now().UTC().Round(0)})
	select {
	case <-inst.Done():
	case <-n.ctx.Done():
		return
	}
	if err := p.server.End(); err != nil {
		n.log.Error("page server cannot be ended", "sandbox", b.id, "error", err)
	}
}

// awaitPages returns when a sandbox has all of its memory. b.mu is not held.
func (n *Node) awaitPages(ctx context.Context, b *box) error {
	b.mu.Lock()
	p := b.paging
	b.mu.Unlock()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ctx.Done():
		return n.ctx.Err()
	}
}

// endPages ends the page server of a sandbox that has no process any more.
func (n *Node) endPages(b *box) {
	b.mu.Lock()
	p := b.paging
	b.mu.Unlock()
	if p == nil {
		return
	}
	p.ending.Store(true)
	if waitFor(n.ctx, p.done, pagesGrace) || n.ctx.Err() != nil {
		return
	}
	n.log.Warn("page server is killed: it does not see that its sandbox has ended", "sandbox", b.id)
	if err := p.server.End(); err != nil {
		n.log.Error("page server cannot be ended", "sandbox", b.id, "error", err)
	}
	waitFor(n.ctx, p.done, pagesGrace)
}

// takeOverPages goes on with the page server of an earlier daemon, if there is one, and reports that.
func (n *Node) takeOverPages(b *box) (bool, error) {
	server, err := checkpoint.FindPages(n.initProgram, filepath.Join(n.checkpointDir(b.id), pagesDir))
	if err != nil || server == nil {
		return false, err
	}
	n.page(b, b.inst, server, nil)
	return true, nil
}
