package driver

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// logPipes holds the FIFOs of running tasks open. Nomad's log collector reads a FIFO until its first end of file and then
// never again, so one writer must be there from before the node's first byte until the task has ended, whatever is killed
// meanwhile: the node writes, the plugin only holds.
type logPipes struct {
	mu   sync.Mutex
	held map[string][]*os.File // by task id
}

func newLogPipes() *logPipes { return &logPipes{held: map[string][]*os.File{}} }

// hold opens the task's FIFOs. What is not a FIFO is left alone: the node says what it thinks of it.
func (p *logPipes) hold(taskID string, t *nodeapi.LogTargets) error {
	if t == nil {
		return nil
	}
	var files []*os.File
	for _, path := range []string{t.Stdout, t.Stderr} {
		if path == "" {
			continue
		}
		f, err := openFIFO(path)
		if err != nil {
			closeAll(files)
			return err
		}
		if f != nil {
			files = append(files, f)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	closeAll(p.held[taskID])
	p.held[taskID] = files
	return nil
}

// release lets the log collector see the end.
func (p *logPipes) release(taskID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	closeAll(p.held[taskID])
	delete(p.held, taskID)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // a FIFO has nothing to flush
	}
}

// openFIFO opens a FIFO for both directions, which neither waits for a reader nor fails without one. The folder is the
// allocation's: links are not followed. It returns nil for another kind of file.
func openFIFO(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("log pipe: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("log pipe %s: %w", path, err), unix.Close(fd))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, unix.Close(fd)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// holdLogs keeps a recovered task's FIFOs open. Its logs are not worth the task: an error is only told.
func (d *Driver) holdLogs(cfg *drivers.TaskConfig) {
	if err := d.pipes.hold(cfg.ID, logTargets(cfg)); err != nil {
		d.logger.Warn("hold the log pipes of a recovered task", "task_id", cfg.ID, "error", err)
	}
}
