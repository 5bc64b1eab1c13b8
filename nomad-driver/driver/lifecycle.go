package driver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/nomad/plugins/drivers"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// handleVersion is the version of the state in a task handle. RecoverTask takes every released one.
const handleVersion = 1

// taskState is the driver's state in a task handle.
type taskState struct {
	SandboxID string `codec:"sandbox_id"`
}

// maxStopTimeout is the longest that a node waits for a sandbox to end by itself.
const maxStopTimeout = time.Hour

// ownerNomad is the owner kind of a sandbox that a job file named itself.
const ownerNomad = "nomad"

// startTimeout bounds one create on the node, a first import of nothing included: templates are there before tasks are.
const startTimeout = 2 * time.Minute

// StartTask creates the task's sandbox. A repeated start of the same task finds the sandbox of the first.
func (d *Driver) StartTask(cfg *drivers.TaskConfig) (*drivers.TaskHandle, *drivers.DriverNetwork, error) {
	if _, _, ok := d.tasks.get(cfg.ID); ok {
		return nil, nil, fmt.Errorf("task %s is started already", cfg.ID)
	}
	req, err := request(cfg, time.Now())
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(d.ctx, startTimeout)
	defer cancel()
	node, err := d.connect(ctx)
	if err != nil {
		return nil, nil, recoverable(err)
	}
	logs, err := holdLogs(req.Logs)
	if err != nil {
		d.logger.Warn("log pipes of a task", "task_id", cfg.ID, "error", err) // the node refuses what it cannot write to
	}
	sb, err := d.create(ctx, node, req)
	if err != nil {
		logs.close()
		return nil, nil, startError(err)
	}
	handle := drivers.NewTaskHandle(handleVersion)
	handle.Config = cfg
	handle.State = drivers.TaskStateRunning
	if err := handle.SetDriverState(taskState{SandboxID: sb.ID.String()}); err != nil {
		logs.close()
		return nil, nil, errors.Join(fmt.Errorf("task handle: %w", err), node.Delete(ctx, sb.ID))
	}
	d.tasks.put(cfg, entry{sandbox: sb.ID, ports: len(req.Publish) > 0, logs: logs})
	d.emit(cfg, fmt.Sprintf("Sandbox %s is running", sb.ID), map[string]string{
		"sandbox_id": sb.ID.String(), "template": sb.Template, "template_digest": sb.Digest,
	})
	return handle, nil, nil
}

// create makes the task's sandbox, or finds the one that an earlier call for the same task made before the plugin, the
// client or the daemon was killed. Nomad starts a task again under a new id where its client was killed before it had noted the
// first start. What that left of a task of a job file is removed: nobody would ask for it again. A sandbox of the control service
// goes on as the new run's: its owner may use it already, since the node's word counts and not Nomad's.
func (d *Driver) create(ctx context.Context, node *nodeapi.Client, req nodeapi.CreateRequest) (nodeapi.Sandbox, error) {
	if req.Owner.Kind == ownerNomad {
		if err := d.removeEarlier(ctx, node, req.Owner); err != nil {
			return nodeapi.Sandbox{}, err
		}
	}
	sb, err := node.Create(ctx, req)
	if api.StatusOf(err) != http.StatusConflict {
		return sb, err
	}
	there, gerr := node.Get(ctx, req.ID)
	if gerr != nil || there.Owner.AllocID != req.Owner.AllocID {
		return nodeapi.Sandbox{}, err // another's
	}
	if !ofTask(there, req.Owner.TaskID) {
		return nodeapi.Sandbox{}, err
	}
	return there, nil // a deadline counts from each call, so that the requests differ
}

// ofTask reports whether a sandbox is a task's: made by this run of it or, where the control service made it, by an earlier one.
func ofTask(sb nodeapi.Sandbox, taskID string) bool {
	return sb.Owner.TaskID == taskID || sb.Owner.Kind != ownerNomad && earlierRun(sb.Owner.TaskID, taskID)
}

// removeEarlier removes the sandboxes of earlier runs of a task.
func (d *Driver) removeEarlier(ctx context.Context, node *nodeapi.Client, owner nodeapi.Owner) error {
	list, err := node.List(ctx)
	if err != nil {
		return err
	}
	for _, sb := range list {
		if sb.Owner.Kind != ownerNomad || sb.Owner.AllocID != owner.AllocID || !earlierRun(sb.Owner.TaskID, owner.TaskID) {
			continue
		}
		d.logger.Warn("an earlier run of the task is removed", "sandbox_id", sb.ID, "task_id", sb.Owner.TaskID)
		if err := ignoreNotFound(node.Delete(ctx, sb.ID)); err != nil {
			return err
		}
	}
	return nil
}

// earlierRun reports whether two ids are of different runs of one task. A task's id is allocation/name/run.
func earlierRun(a, b string) bool {
	i, j := strings.LastIndexByte(a, '/'), strings.LastIndexByte(b, '/')
	return i > 0 && j > 0 && a[:i] == b[:j] && a != b
}

// emit sends a task event; the event stream is advice for people, so an error is only logged.
func (d *Driver) emit(cfg *drivers.TaskConfig, message string, annotations map[string]string) {
	err := d.events.EmitEvent(&drivers.TaskEvent{
		TaskID: cfg.ID, TaskName: cfg.Name, AllocID: cfg.AllocID,
		Timestamp: time.Now(), Message: message, Annotations: annotations,
	})
	if err != nil {
		d.logger.Warn("emit task event", "task_id", cfg.ID, "error", err)
	}
}

// RecoverTask finds a task's sandbox again after a restart of the client or of the plugin, running or ended.
func (d *Driver) RecoverTask(handle *drivers.TaskHandle) error {
	if handle == nil || handle.Config == nil {
		return errors.New("task handle is empty")
	}
	if handle.Version != handleVersion {
		return fmt.Errorf("task handle: version %d is not served, only %d", handle.Version, handleVersion)
	}
	if _, _, ok := d.tasks.get(handle.Config.ID); ok {
		return nil
	}
	var state taskState
	if err := handle.GetDriverState(&state); err != nil {
		return fmt.Errorf("task handle: %w", err)
	}
	id, err := api.ParseSandboxID(state.SandboxID)
	if err != nil {
		return fmt.Errorf("task handle: %w", err)
	}
	ctx, cancel := context.WithTimeout(d.ctx, nodeStartTimeout)
	defer cancel()
	node, err := d.connect(ctx)
	if err != nil {
		return err
	}
	sb, err := node.Get(ctx, id)
	if api.IsNotFound(err) && id != sandboxID(handle.Config.ID) {
		// The control service ended it while Nomad's client was away. To Nomad a task that is not recovered is one to be started again; this one has ended, as WaitTask says.
		d.tasks.put(handle.Config, entry{sandbox: id})
		return nil
	}
	if err != nil {
		return fmt.Errorf("recover task %s: %w", handle.Config.ID, err)
	}
	if !ofTask(sb, handle.Config.ID) {
		return fmt.Errorf("recover task %s: sandbox %s belongs to task %q", handle.Config.ID, id, sb.Owner.TaskID)
	}
	var logs *heldLogs
	if sb.State != nodeapi.StateStopped && sb.Main != 0 {
		if logs, err = holdLogs(logTargets(handle.Config)); err != nil {
			d.logger.Warn("log pipes of a recovered task", "task_id", handle.Config.ID, "error", err)
		}
	}
	var tc TaskConfig
	if err := handle.Config.DecodeDriverConfig(&tc); err != nil { // it was read before; without it a lost port is not told of
		d.logger.Warn("config of a recovered task", "task_id", handle.Config.ID, "error", err)
	}
	d.tasks.put(handle.Config, entry{sandbox: id, ports: len(tc.Ports) > 0, logs: logs})
	return nil
}

// WaitTask tells how the task ended, once it has. Many may wait.
func (d *Driver) WaitTask(ctx context.Context, taskID string) (<-chan *drivers.ExitResult, error) {
	id, err := d.known(taskID)
	if err != nil {
		return nil, err
	}
	ch := make(chan *drivers.ExitResult, 1)
	go func() { // ends with the sandbox, the caller or the plugin
		defer close(ch)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(d.ctx, cancel)()
		if result := d.wait(ctx, taskID, id); result != nil {
			d.tasks.letGoLogs(taskID)
			ch <- result
		}
	}()
	return ch, nil
}

// wait outlasts restarts of the daemon, which it starts again where nobody else does. It returns nil when ctx ends.
func (d *Driver) wait(ctx context.Context, taskID string, id api.SandboxID) *drivers.ExitResult {
	const pause = 500 * time.Millisecond
	for ctx.Err() == nil {
		node, err := d.connect(ctx)
		if err == nil {
			var sb nodeapi.Sandbox
			if task := d.tasks.withPorts(taskID); task != nil { // the daemon, or the plugin, may be another one than before
				d.renewPorts(ctx, node, id, task)
			}
			if sb, err = node.Wait(ctx, id); err == nil {
				return exitResult(sb)
			}
		}
		if api.IsNotFound(err) {
			return &drivers.ExitResult{ExitCode: -1, Err: fmt.Errorf("sandbox %s is gone from the node", id)}
		}
		d.logger.Debug("wait for sandbox", "sandbox_id", id, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

func exitResult(sb nodeapi.Sandbox) *drivers.ExitResult {
	if sb.Exit == nil {
		return &drivers.ExitResult{ExitCode: -1, Err: fmt.Errorf("sandbox %s stopped without an exit record", sb.ID)}
	}
	r := &drivers.ExitResult{ExitCode: sb.Exit.Code, Signal: sb.Exit.Signal, OOMKilled: sb.Exit.OOM}
	switch sb.Exit.Reason {
	case nodeapi.ExitDeadline:
		r.Err = errors.New("sandbox reached its deadline")
	case nodeapi.ExitLost:
		r.ExitCode, r.Err = -1, errors.New("sandbox was lost when the machine restarted")
	}
	return r
}

// StopTask ends the task with a signal, then by force. An unknown task is no error: Nomad cannot tell it from others over
// the plugin border and would retry for minutes.
func (d *Driver) StopTask(taskID string, timeout time.Duration, signal string) error {
	number, err := signalNumber(signal, unix.SIGTERM)
	if err != nil {
		return err
	}
	node, id, err := d.locate(taskID)
	if err != nil || id == "" {
		return err
	}
	_, err = node.Stop(d.ctx, id, nodeapi.StopRequest{Signal: int(number), Timeout: min(max(timeout, 0), maxStopTimeout)})
	if err = ignoreNotFound(err); err == nil {
		d.tasks.letGoLogs(taskID)
	}
	return err
}

// DestroyTask removes the task's sandbox. It works for tasks that this plugin does not know, by the node's records.
func (d *Driver) DestroyTask(taskID string, force bool) error {
	node, id, err := d.locate(taskID)
	if err != nil || id == "" {
		return err
	}
	sb, err := node.Get(d.ctx, id)
	if err != nil {
		d.tasks.remove(taskID)
		return ignoreNotFound(err)
	}
	if sb.State != nodeapi.StateStopped {
		if !force {
			return fmt.Errorf("task %s is running: destroy it with force", taskID)
		}
		if _, err := node.Stop(d.ctx, id, nodeapi.StopRequest{Signal: int(unix.SIGKILL)}); ignoreNotFound(err) != nil {
			return err
		}
	}
	if err := ignoreNotFound(node.Delete(d.ctx, id)); err != nil {
		return err
	}
	d.tasks.remove(taskID)
	return nil
}

// locate returns the node and the task's sandbox; an empty id where the node has none.
func (d *Driver) locate(taskID string) (*nodeapi.Client, api.SandboxID, error) {
	node, err := d.connect(d.ctx)
	if err != nil {
		return nil, "", err
	}
	id, found, err := d.find(d.ctx, node, taskID)
	if err != nil || !found {
		return nil, "", err
	}
	return node, id, nil
}

// InspectTask tells a task's state.
func (d *Driver) InspectTask(taskID string) (*drivers.TaskStatus, error) {
	id, name, ok := d.tasks.get(taskID)
	if !ok {
		return nil, drivers.ErrTaskNotFound
	}
	node, err := d.connect(d.ctx)
	if err != nil {
		return nil, err
	}
	sb, err := node.Get(d.ctx, id)
	if err != nil {
		return nil, err
	}
	status := &drivers.TaskStatus{
		ID: taskID, Name: name,
		State:       drivers.TaskStateRunning,
		StartedAt:   sb.StartedAt,
		CompletedAt: sb.EndedAt,
		DriverAttributes: map[string]string{
			"sandbox_id": sb.ID.String(), "template_digest": sb.Digest, "profile": sb.Profile,
		},
	}
	if sb.State == nodeapi.StateStopped {
		status.State, status.ExitResult = drivers.TaskStateExited, exitResult(sb)
	}
	return status, nil
}

// SignalTask sends a signal to the task's main process.
func (d *Driver) SignalTask(taskID, signal string) error {
	id, err := d.known(taskID)
	if err != nil {
		return err
	}
	number, err := signalNumber(signal, 0)
	if err != nil {
		return err
	}
	node, err := d.connect(d.ctx)
	if err != nil {
		return err
	}
	return node.Signal(d.ctx, id, nodeapi.SignalRequest{Signal: int(number)})
}

// signalNumber reads "SIGUSR1" or "usr1"; empty is fallback, and an error where fallback is 0.
func signalNumber(name string, fallback syscall.Signal) (syscall.Signal, error) {
	if name == "" && fallback != 0 {
		return fallback, nil
	}
	full := strings.ToUpper(name)
	if !strings.HasPrefix(full, "SIG") {
		full = "SIG" + full
	}
	if n := unix.SignalNum(full); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("signal %q is unknown", name)
}

func ignoreNotFound(err error) error {
	if api.IsNotFound(err) {
		return nil
	}
	return err
}

// startError tells Nomad whether its restart policy may help: not where the request itself is at fault.
func startError(err error) error {
	// Nomad keeps nothing of an error but its text, from which the control service takes the code again.
	if e := (*api.Error)(nil); errors.As(err, &e) && e.ErrorCode != "" {
		err = fmt.Errorf("%w (%s)", err, e.ErrorCode)
	}
	if s := api.StatusOf(err); s >= 400 && s < 500 && s != http.StatusTooManyRequests {
		return err
	}
	return recoverable(err)
}

// recoverableError is the one kind of error that crosses the plugin border with its meaning (Nomad's structs.Recoverable).
type recoverableError struct{ error }

func recoverable(err error) error { return recoverableError{err} }

// IsRecoverable makes Nomad apply the task's restart policy.
func (recoverableError) IsRecoverable() bool { return true }

func (e recoverableError) Unwrap() error { return e.error }
