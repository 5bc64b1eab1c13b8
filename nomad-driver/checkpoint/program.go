package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// program is how CRIU is started.
type program struct {
	path string
	args []string // from argv[0] to the one before "swrk"; nil: the path alone
	env  []string // nil: the usual one
}

// usualEnv has what CRIU needs. Its library for TLS, which it speaks between machines only, would test itself at each start. It archives file systems in memory with
// GNU tar, which else keeps of times the seconds alone, and nothing of attributes and access lists.
var usualEnv = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GNUTLS_NO_IMPLICIT_INIT=1",
	"TAR_OPTIONS=--format=posix --acls --xattrs --xattrs-include=* --xattrs-exclude=security.selinux", // that one is the host's
}

// command starts CRIU as the worker of whoever has the other end of a socket.
func (p program) command(socket string) *exec.Cmd {
	cmd := exec.Command(p.path)
	if p.args != nil {
		cmd.Args = slices.Clone(p.args)
	}
	cmd.Args = append(cmd.Args, "swrk", socket)
	if cmd.Env = p.env; cmd.Env == nil {
		cmd.Env = usualEnv
	}
	return cmd
}

const (
	// upTimeout bounds the wait for a CRIU that has been started to be asked.
	upTimeout = 5 * time.Second
	upEvery   = 500 * time.Microsecond
)

// waiting returns how a worker that has been started, and asked nothing yet, could be started directly, once it waits to be asked. Empty: it
// cannot be told.
func waiting(ctx context.Context, pid int) program {
	if !up(ctx, pid, firstFile) {
		return program{}
	}
	return running(pid)
}

// up returns when a worker whose socket has that number waits to be asked. False: it cannot be told.
func up(ctx context.Context, pid, socket int) bool {
	ctx, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	tick := time.NewTicker(upEvery)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
		if err != nil {
			return false
		}
		var call int
		var fd uint64
		if _, err := fmt.Sscanf(string(b), "%d 0x%x", &call, &fd); err == nil && fd == uint64(socket) && (call == unix.SYS_RECVMSG || call == unix.SYS_RECVFROM) {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// running tells how a worker that runs could be started without what has led to it: CRIU that does not fit into its distribution comes with a
// script that starts it through a dynamic linker of its own, and the script takes longer than CRIU. Empty: it cannot be told.
func running(pid int) program {
	proc := fmt.Sprintf("/proc/%d/", pid)
	path, err := os.Readlink(proc + "exe")
	if err != nil || strings.HasSuffix(path, " (deleted)") {
		return program{}
	}
	args, err := words(proc + "cmdline")
	if err != nil || len(args) < 3 || args[len(args)-2] != "swrk" {
		return program{}
	}
	env, err := words(proc + "environ")
	if err != nil {
		return program{}
	}
	return program{path: path, args: args[:len(args)-2], env: env}
}

func words(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for w := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		out = append(out, string(w))
	}
	return out, nil
}
