package build

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// The words of api.BuildReason.Step for what is no step of the client's.
const (
	stepBase     = "base"
	stepFinalize = "finalize"
)

// Places in the sandbox of a build. Nothing of them is in the template.
const (
	workDir  = "/var/tmp/.soulbox-build"
	treeFile = workDir + "/tree.tar"
)

// site is a build in its sandbox.
type site struct {
	*build
	node *nodeapi.Client
	box  api.SandboxID

	user string            // of the next step; empty: the sandbox's default
	cwd  string            // the same
	env  map[string]string // of the next step, and of the template
	keys []string          // of env, in order
}

// do does a build from its first step to its template, and records what came of it.
func (s *Service) do(b *build, in api.BuildInstructions) {
	ctx, cancel := context.WithTimeoutCause(b.ctx, maxTime, fmt.Errorf("the build took longer than %s", maxTime))
	defer cancel()
	done := make(chan struct{})
	s.wg.Go(func() { b.record(done) })
	var step string
	var err error
	select {
	case s.places <- struct{}{}:
		step, err = s.make(ctx, b, in)
		<-s.places
	case <-ctx.Done():
	}
	close(done)
	if ctx.Err() != nil && (err != nil || step == "") {
		if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
			err = errors.New("the service stopped")
		}
	}
	end := &state.BuildEnd{ID: b.ID, Status: state.BuildReady, At: s.cfg.Now().UTC()}
	if err != nil {
		end.Status, end.Reason, end.Step = state.BuildError, err.Error(), step
		s.cfg.Logger.Info("build failed", "build", b.ID, "template", b.Name, "step", step, "error", err)
	}
	final, cancelFinal := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancelFinal()
	flushed := b.flush(final, "") // all but what the end itself can take
	if err != nil {
		end.Entries = []state.BuildLogEntry{entry("error", step, cut(err.Error()))}
	}
	if flushed == nil || errors.Is(flushed, errEnded) {
		_, flushed = s.cfg.State.Apply(final, end)
	}
	if flushed != nil {
		s.cfg.Logger.Warn("end of a build not recorded", "build", b.ID, "error", flushed)
	}
	b.stop(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.here, b.ID)
}

func cut(s string) string {
	if len(s) > maxLine {
		s = s[:maxLine] + "…"
	}
	return s
}

// make returns the step that failed with its error.
func (s *Service) make(ctx context.Context, b *build, in api.BuildInstructions) (string, error) {
	base, clean, err := s.base(ctx, b, in)
	if err != nil {
		return stepBase, err
	}
	defer clean()
	b.say("info", stepBase, "FROM "+base.Name+" ("+base.Digest+")")
	key := keyOf(base, in)
	if before, err := s.before(b, key, in); err != nil || before.Digest != "" {
		if err == nil {
			err = s.again(ctx, b, before)
		}
		return stepFinalize, err
	}
	sb, _, err := s.cfg.Sandboxes.Create(ctx, lifecycle.CreateParams{
		Caller: b.caller, Template: base.Digest, Timeout: maxTime, CPUMillis: b.CPUMillis, MemoryMB: b.MemoryMB,
		Metadata: map[string]string{"soulbox.build": b.ID}, Lifecycle: state.Lifecycle{OnTimeout: state.OnTimeoutKill},
	})
	if err != nil {
		return stepBase, fmt.Errorf("sandbox of the build: %w", err)
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if err := s.cfg.Sandboxes.Delete(clean, b.Tenant, sb.ID); err != nil && !api.IsNotFound(err) {
			s.cfg.Logger.Warn("sandbox of a build not ended", "build", b.ID, "sandbox", sb.ID, "error", err)
		}
	}()
	if err := b.flush(ctx, string(sb.ID)); err != nil {
		return stepBase, err
	}
	node, err := s.cfg.Sandboxes.NodeFor(ctx, b.Tenant, sb.ID)
	if err != nil {
		return stepBase, err
	}
	at := &site{build: b, node: node, box: sb.ID, user: base.User, cwd: base.Cwd, env: map[string]string{}}
	for _, kv := range base.Env {
		k, v, _ := strings.Cut(kv, "=")
		at.set(k, v)
	}
	if in.FromImage != "" {
		if err := at.provision(ctx); err != nil {
			return stepBase, err
		}
		if at.env["PATH"] != "" {
			if err := at.keepPath(ctx, stepBase); err != nil {
				return stepBase, err
			}
		}
	}
	for i, st := range in.Steps {
		step := strconv.Itoa(i + 1)
		b.say("info", step, strings.TrimSpace(st.Type+" "+strings.Join(shown(st), " ")))
		if err := at.step(ctx, step, st); err != nil {
			return step, err
		}
	}
	return stepFinalize, at.finish(ctx, base, in, key)
}

// shown are the arguments of a step without the empty ones.
func shown(st api.BuildStep) []string {
	return slices.DeleteFunc(slices.Clone(st.Args), func(a string) bool { return a == "" })
}

func (a *site) set(k, v string) {
	if _, had := a.env[k]; !had {
		a.keys = append(a.keys, k)
	}
	a.env[k] = v
}

func (a *site) environment() []string {
	var out []string
	for _, k := range a.keys {
		out = append(out, k+"="+a.env[k])
	}
	return out
}

func (a *site) step(ctx context.Context, step string, st api.BuildStep) error {
	switch st.Type {
	case "RUN":
		user := a.user
		if len(st.Args) > 1 && st.Args[1] != "" {
			user = st.Args[1]
		}
		return a.shell(ctx, step, user, st.Args[0])
	case "ENV":
		return a.setEnv(ctx, step, st.Args)
	case "WORKDIR":
		dir, err := a.expanded(ctx, st.Args[0])
		if err != nil {
			return err
		}
		if !path.IsAbs(dir) {
			dir = path.Join("/", a.cwd, dir)
		}
		a.cwd = dir
		return a.asRoot(ctx, step, nil, ownerScript+`mkdir -p -- "$1" && if [ -n "$2" ]; then chown -- "$(owner "$2")" "$1"; fi`, dir, a.user)
	case "USER":
		user, err := a.expanded(ctx, st.Args[0])
		if err != nil {
			return err
		}
		a.user = user
		return a.asRoot(ctx, step, nil, `id -u -- "$1" >/dev/null`, strings.Split(user, ":")[0])
	case "COPY":
		return a.copy(ctx, step, st)
	}
	return nil
}

// setEnv does an ENV step: its values are of the variables before it.
func (a *site) setEnv(ctx context.Context, step string, args []string) error {
	args = slices.Clone(args)
	for i := 0; i < len(args); i += 2 {
		if k := args[i]; k == "" || strings.ContainsRune(k, '=') {
			return fmt.Errorf("%.60q is no name of a variable", k)
		}
		v, err := a.expanded(ctx, args[i+1])
		if err != nil {
			return fmt.Errorf("variable %.60s: %w", args[i], err)
		}
		args[i+1] = v
	}
	path := false
	for i := 0; i < len(args); i += 2 {
		a.set(args[i], args[i+1])
		path = path || args[i] == "PATH"
	}
	if path {
		return a.keepPath(ctx, step)
	}
	return nil
}

// keepPath has login shells, which the contract's clients run all commands with, keep the template's PATH: /etc/profile sets its own.
func (a *site) keepPath(ctx context.Context, step string) error {
	quoted := "'" + strings.ReplaceAll(a.env["PATH"], "'", `'\''`) + "'"
	return a.asRoot(ctx, step, nil, `mkdir -p /etc/profile.d && printf '%s\n' "$1" >/etc/profile.d/soulbox-path.sh`, "export PATH="+quoted)
}

// shell runs a command as the contract does: in a login shell.
func (a *site) shell(ctx context.Context, step, user, command string) error {
	return a.exec(ctx, step, guest.Start{Argv: []string{"/bin/bash", "-l", "-c", command}, User: user, Cwd: a.cwd, Env: a.environment(), KillOnDetach: true}, nil)
}

// asRoot runs a script of ours, whose arguments are $1 and so on.
func (a *site) asRoot(ctx context.Context, step string, stdin io.Reader, script string, args ...string) error {
	argv := append([]string{"/bin/sh", "-c", script, "sh"}, args...)
	return a.exec(ctx, step, guest.Start{Argv: argv, User: "root", Cwd: "/", KillOnDetach: true}, stdin)
}

func (a *site) exec(ctx context.Context, step string, st guest.Start, stdin io.Reader) error {
	out, errs := &lines{b: a.build, level: "info", step: step}, &lines{b: a.build, level: "warn", step: step}
	exit, err := a.node.Run(ctx, a.box, nodeapi.ExecRequest{Start: st}, stdin, out, errs)
	out.end()
	errs.end()
	switch {
	case err != nil:
		return err
	case exit.Signal != 0:
		return fmt.Errorf("the command was ended by signal %d", exit.Signal)
	case exit.Code != 0:
		return fmt.Errorf("the command ended with exit code %d", exit.Code)
	}
	return nil
}

// ownerScript says who owns what a user has, with the user's own group where none is named, and that of the same number where the user is a number.
const ownerScript = `owner() { case $1 in *:*) echo "$1" ;; *[!0-9]*) echo "$1:" ;; *) echo "$1:$1" ;; esac; }
`

// copyScript puts what a COPY step has uploaded to where it belongs. Its arguments: the folder of the upload, the source, the
// destination, the owner and the mode, either of which may be empty. A folder's content goes into the destination; a file is the
// destination, or goes into it where that is a folder, ends with a slash, or the source means several files.
const copyScript = ownerScript + `set -e
cd -- "$1"
dest=$3
if [ -n "$4" ]; then chown -hR -- "$(owner "$4")" .; fi
if [ -n "$5" ]; then find . -mindepth 1 ! -type l -exec chmod "$5" {} +; fi
if [ -d "./$2" ] && [ ! -L "./$2" ]; then
	mkdir -p -- "$dest"
	cp -a -- "./$2/." "$dest/"
	exit
fi
IFS=
set -- "$1" ./$2
shift
if [ ! -e "$1" ] && [ ! -L "$1" ]; then echo "the source is not among the files" >&2; exit 1; fi
many=
if [ "$#" -gt 1 ]; then many=1; fi
case $dest in */) many=1 ;; esac
if [ -n "$many" ] || [ -d "$dest" ]; then
	mkdir -p -- "$dest"
	cp -a -- "$@" "$dest/"
else
	mkdir -p -- "$(dirname -- "$dest")"
	cp -a -- "$1" "$dest"
fi
`

// copy does a COPY step.
func (a *site) copy(ctx context.Context, step string, st api.BuildStep) error {
	src := path.Clean("/" + st.Args[0])[1:]
	dest, err := a.expanded(ctx, st.Args[1])
	if err != nil {
		return err
	}
	owner, mode := a.user, ""
	if len(st.Args) > 2 && st.Args[2] != "" {
		owner = st.Args[2]
	}
	if len(st.Args) > 3 {
		mode = st.Args[3]
	}
	if !path.IsAbs(dest) {
		slash := strings.HasSuffix(dest, "/") || dest == "." || dest == ""
		home := a.cwd
		if home == "" {
			home = "/home/" + strings.Split(a.user, ":")[0]
			if a.user == "" || a.user == "root" {
				home = "/root"
			}
		}
		if dest = path.Join("/", home, dest); slash {
			dest += "/"
		}
	}
	if src == "" {
		src = "."
	}
	f, err := os.Open(a.s.uploads.path(a.Tenant, st.FilesHash))
	if err != nil {
		return errors.New("the files of this step were not uploaded")
	}
	defer f.Close()
	tarball, err := plainTar(f)
	if err != nil {
		return err
	}
	dir := workDir + "/copy-" + step
	if err := a.node.WriteArchive(ctx, a.box, dir, tarball, nodeapi.FileOptions{User: "root"}); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	if err := a.asRoot(ctx, step, nil, copyScript, dir, src, dest, owner, mode); err != nil {
		return err
	}
	return a.asRoot(ctx, step, nil, `rm -rf -- "$1"`, dir)
}

// plainTar returns a tar without the compression that clients may have given it.
func plainTar(r io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	if magic, _ := br.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return br, nil
	}
	z, err := gzip.NewReader(br)
	if err != nil {
		return nil, fmt.Errorf("the files are no gzip: %w", err)
	}
	return io.LimitReader(z, 8*maxUpload), nil // a bomb ends here; the sandbox's own limits come before
}

// packScript writes the tree of the sandbox, without what is mounted in it and what was the build's.
const packScript = `set -e
mkdir -p -- "$1"
tar --create --file="$2" --one-file-system --numeric-owner --xattrs --xattrs-include=security.capability --xattrs-include='user.*' \
	--warning=no-file-ignored --warning=no-file-changed --directory=/ --exclude="./${1#/}" .
`

// finish proves that the start command serves, and makes the template.
func (a *site) finish(ctx context.Context, base state.Template, in api.BuildInstructions, key string) error {
	start, ready := in.StartCmd, in.ReadyCmd
	if start == "" {
		start = base.StartCmd
		if ready == "" {
			ready = base.ReadyCmd
		}
	}
	if start != "" || ready != "" {
		if err := a.serve(ctx, start, ready); err != nil {
			return err
		}
	}
	a.say("info", stepFinalize, "saving the files")
	if err := a.asRoot(ctx, stepFinalize, nil, packScript, workDir, treeFile); err != nil {
		return fmt.Errorf("pack the files: %w", err)
	}
	tree, _, err := a.node.ReadFile(ctx, a.box, treeFile, nodeapi.FileOptions{User: "root"})
	if err != nil {
		return fmt.Errorf("read the files: %w", err)
	}
	defer tree.Close()
	made, err := a.s.cfg.Templates.Build(ctx, a.Tenant, a.nameFor(a.Tags[0]), "build "+a.ID, template.Built{
		TemplateID: a.TemplateID, BuildID: a.ID, BuildKey: key, CPUMillis: a.CPUMillis, MemoryMB: a.MemoryMB, StartCmd: start, ReadyCmd: ready,
		ProcessDefaults: nodeapi.ProcessDefaults{User: a.user, Cwd: a.cwd, Env: a.environment()},
	}, tree)
	if err != nil {
		return err
	}
	return a.tag(ctx, made)
}

// tag gives a template that was made the rest of its tags.
func (b *build) tag(ctx context.Context, made state.Template) error {
	rest := slices.Clone(b.Tags[1:])
	if _, err := b.s.cfg.Templates.Find(b.Tenant, b.Name); api.IsNotFound(err) {
		rest = append(rest, "default") // a template has one
	}
	if len(rest) > 0 {
		if _, err := b.s.cfg.Templates.Tag(ctx, b.Tenant, made.Name, rest); err != nil {
			return err
		}
	}
	b.say("info", stepFinalize, "template "+made.Name+" is "+made.Digest)
	return nil
}

func (b *build) nameFor(tag string) string {
	if tag == "default" {
		return b.Name
	}
	return b.Name + ":" + tag
}

// serve runs the start command until the ready command succeeds.
func (a *site) serve(ctx context.Context, start, ready string) error {
	within, cancel := context.WithTimeoutCause(ctx, readyTime, fmt.Errorf("not ready within %s", readyTime))
	defer cancel()
	running, stop := context.WithCancel(within)
	var ended chan struct{} // never, where there is no start command
	var failed error
	if start != "" {
		a.say("info", stepFinalize, "START "+start)
		done := make(chan struct{})
		go func() {
			defer close(done)
			failed = a.shell(running, stepFinalize, a.user, start)
		}()
		defer func() { stop(); <-done }()
		ended = done
	}
	defer stop()
	if ready == "" {
		return nil
	}
	a.say("info", stepFinalize, "READY "+ready)
	for {
		exit, err := a.node.Run(within, a.box, nodeapi.ExecRequest{Start: guest.Start{
			Argv: []string{"/bin/bash", "-l", "-c", ready}, User: a.user, Cwd: a.cwd, Env: a.environment(), KillOnDetach: true,
		}}, nil, nil, nil)
		if err == nil && exit.Code == 0 && exit.Signal == 0 {
			return nil
		}
		if within.Err() != nil {
			return context.Cause(within)
		}
		if err != nil {
			return fmt.Errorf("ready command: %w", err)
		}
		select {
		case <-ended:
			if failed != nil {
				return fmt.Errorf("start command: %w", failed)
			}
			ended = nil // it has put itself into the background
		case <-within.Done():
			return context.Cause(within)
		case <-time.After(readyGap):
		}
	}
}
