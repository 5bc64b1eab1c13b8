package driver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// nodeStartTimeout bounds how long a freshly started daemon may take to answer. It recovers all sandboxes first.
const nodeStartTimeout = 30 * time.Second

var errPluginNotConfigured = errors.New("plugin is not configured yet")

// connect returns the node's client after the node has answered once; it starts the daemon where none does.
func (d *Driver) connect(ctx context.Context) (*nodeapi.Client, error) {
	config, node, _ := d.settings()
	if node == nil {
		return nil, errPluginNotConfigured
	}
	_, err := node.Node(ctx)
	if err == nil {
		return node, nil
	}
	if !config.StartNode {
		return nil, fmt.Errorf("node daemon on %s does not answer, and start_node is false: %w", config.Socket, err)
	}
	return node, d.startNode(ctx, config, node)
}

// startNode starts the daemon in a session of its own, so that it outlives the plugin and the Nomad client, and waits until
// it answers. Two plugins may race for it: the daemon's own lock lets one win, and both find the winner.
func (d *Driver) startNode(ctx context.Context, config Config, node *nodeapi.Client) error {
	d.starting.Lock()
	defer d.starting.Unlock()
	if _, err := node.Node(ctx); err == nil {
		return nil
	}
	exited, err := d.launchNode(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, nodeStartTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err = node.Node(ctx); err == nil {
			d.logger.Info("node daemon started", "socket", config.Socket)
			return nil
		}
		select {
		case status := <-exited:
			// A daemon that lost the race for the lock ends at once; the winner answers, sooner or later.
			if _, err := node.Node(ctx); err != nil {
				return fmt.Errorf("node daemon ended at once (%s), see %s", status, config.NodeLog)
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("node daemon on %s: %w; see %s", config.Socket, err, config.NodeLog)
		case <-tick.C:
		}
	}
}

func (d *Driver) launchNode(config Config) (<-chan string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("path of the plugin: %w", err)
	}
	args := []string{"node", "-socket", config.Socket}
	if config.NodeConfig != "" {
		args = append(args, "-config", config.NodeConfig)
	}
	cmd := exec.Command(self, append(args, config.NodeArgs...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = nodeEnv(os.Environ())
	cmd.Dir = "/"
	if config.NodeLog != "" {
		log, err := os.OpenFile(config.NodeLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("log of the node daemon: %w", err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the node daemon: %w", err)
	}
	exited := make(chan string, 1)
	go func() { // ends with the daemon or with the plugin's process
		_ = cmd.Wait()
		exited <- cmd.ProcessState.String()
	}()
	return exited, nil
}
