package sandbox

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/cgroup"
)

// oomWatch ends a sandbox as one when it has run out of memory, as the kernel itself does on cgroup v2: on v1 it picks one
// process, and what is left has a hole where that was. It is a goroutine that waits in the poller and no thread.
type oomWatch struct {
	events *os.File
	cancel context.CancelFunc
	done   chan struct{}
}

// oomPoll is how long, after the kernel has told of too little memory, its killing is waited for.
const oomPoll = time.Second

// watchOOM starts the watch of a group; nil where the kernel needs none. A group that has lost a process already ends at
// once. The caller stops it.
func watchOOM(group *cgroup.Group) (*oomWatch, error) {
	events, err := group.OOMEvents()
	if errors.Is(err, cgroup.ErrUnsupported) || events == nil && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &oomWatch{events: events, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.run(ctx, group)
	}()
	return w, nil
}

func (w *oomWatch) run(ctx context.Context, group *cgroup.Group) {
	for {
		kills, err := group.OOMKills()
		if err != nil {
			return // the group is gone
		}
		if kills > 0 {
			_ = group.Kill(ctx) // where that fails nothing more can be done here, and an end from above tries again
			return
		}
		if _, err := w.events.Read(make([]byte, 8)); err != nil {
			return // stopped
		}
		// The event comes before the kill, which may also turn out not to be needed.
		for end := time.Now().Add(oomPoll); time.Now().Before(end); {
			if kills, err := group.OOMKills(); err != nil || kills > 0 {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// stop ends the watch and waits for that.
func (w *oomWatch) stop() error {
	if w == nil {
		return nil
	}
	w.cancel()
	err := closeQuietly(w.events)
	<-w.done
	return err
}
