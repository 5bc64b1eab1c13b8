package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/devserver"
	"github.com/soulbox-dev/soulbox/control/cli/service"
	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

const defaultDevDir = "/var/lib/soulbox/dev"

// development is one call of dev.
type development struct {
	env      *Env
	dir      string
	listen   string
	init     string
	source   string // of the template base; empty: it is made
	logLevel string
	network  string
	first    bool
	keep     bool
	cluster  bool

	freePorts  bool
	registries []string
	release    func() // lets the next signal end this program at once

	client *api.Client
}

func devCommand(env *Env) *command {
	d := development{env: env, dir: defaultDevDir, listen: service.DefaultListen, logLevel: "warn"}
	return &command{
		synopsis: "Run SoulBox on this machine, for development",
		usage:    "[options]",
		about: `
Runs everything in one process: the node daemon of this machine and a control
server. It prints the address and the API key, and serves until Ctrl-C, which
ends its sandboxes too. The first call makes the template base, which takes
half a minute; after that a start takes less than a second. It needs root.

    $ sudo soulbox dev
    $ soulbox sandbox create -template=base      # in a second shell`,
		flags: func(o *options) {
			o.String(&d.dir, "state-dir", "<path>", "Folder for all state. Default = "+defaultDevDir+".", complete.PredictDirs("*"))
			o.String(&d.listen, "listen", "<addr>", "host:port of the API. Default = "+service.DefaultListen+".", nil)
			o.Switch(&d.first, "first-sandbox", "Make a sandbox, run a program in it and show its output.")
			o.Switch(&d.cluster, "cluster", "Start real Nomad, Consul and Vault agents beside it, and place the sandboxes through them. "+
				"`make stack` puts their programs where they are found.")
			o.Switch(&d.freePorts, "free-ports", "With -cluster: give the agents ports that are free instead of their usual ones.")
			o.Switch(&d.keep, "keep", "Leave sandboxes running at the end; the next call finds them again.")
			o.String(&d.source, "base", "<source>", "Make the template base of this tar, OCI layout or folder, where it does not exist.", complete.PredictFiles("*"))
			o.String(&d.init, "init", "<path>", "The program soulbox-init. Default = beside this program, else in /usr/libexec/soulbox.", complete.PredictFiles("*"))
			o.Func("image-registry", "<host:port>", "A registry of this machine or network that builds may pull images from. May be repeated.", nil, words(&d.registries))
			o.String(&d.network, "network", "<mode>", "auto: sandboxes reach the internet, and nothing private, where the machine can. "+
				"on: or do not start. off: their loopback only. Default = auto.", complete.PredictSet("on", "auto", "off"))
			o.String(&d.logLevel, "log-level", "<level>", "trace, debug, info, warn or error. Default = warn.",
				complete.PredictSet("trace", "debug", "info", "warn", "error"))
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			d.release = conn.release
			if d.cluster && d.keep {
				return usagef("-keep and -cluster do not go together: the sandboxes end with the cluster")
			}
			switch d.network {
			case "", "on", "auto", "off":
			default:
				return usagef("network %.40q is none of on, auto, off", d.network)
			}
			return d.run(ctx)
		},
	}
}

func (d *development) run(ctx context.Context) error {
	start := time.Now()
	if os.Geteuid() != 0 {
		return fmt.Errorf("sandboxes are made of namespaces and mounts, which needs root: sudo %s dev", Name)
	}
	level := hclog.LevelFromString(d.logLevel)
	if level == hclog.NoLevel {
		return usagef("log-level %.40q is none of trace, debug, info, warn, error", d.logLevel)
	}
	if !filepath.IsAbs(d.dir) {
		d.dir = filepath.Join(d.env.Dir, d.dir)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: Name, Level: level, Output: d.env.Stderr, Exclude: ordinary})
	begin := devserver.Start
	if d.cluster {
		fmt.Fprintln(d.env.Stdout, "==> Starting Nomad, Consul and Vault")
		begin = devserver.StartCluster
	}
	s, err := begin(ctx, devserver.Config{StateDir: d.dir, Listen: d.listen, InitPath: d.init, Logger: log, FreePorts: d.freePorts, Registries: d.registries, Network: d.network})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-s.Done():
			cancel()
		case <-ctx.Done():
		}
	})
	err = d.serve(ctx, s, start)
	d.release()
	cancel()
	wg.Wait()
	if err != nil && errors.Is(err, context.Canceled) {
		err = nil // asked to end, or s tells why below
	}
	return errors.Join(err, d.end(s))
}

// ordinary are warnings of every start and end of a server that is alone.
func ordinary(level hclog.Level, msg string, _ ...any) bool {
	return level == hclog.Warn && (msg == "heartbeat timeout reached, starting election" || msg == "node not connected")
}

// serve does what is to be done at the start, says what there is, and waits.
func (d *development) serve(ctx context.Context, s *devserver.Server, start time.Time) error {
	if s.APIKey == "" {
		return fmt.Errorf("the API key of the first start is not in %s any more: delete %s to start anew", s.KeyFile, d.dir)
	}
	var err error
	if d.client, err = api.New(api.Config{Address: s.Address, APIKey: s.APIKey}); err != nil {
		return err
	}
	defer d.client.Close()
	started := time.Since(start)
	names, made, err := d.templates(ctx)
	if err != nil {
		return err
	}
	local, err := d.announce(s)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.env.Stdout, "==> SoulBox dev server running, started in %s\n\n", short(started))
	network, err := d.networkText(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{
		{"Address", s.Address}, {"API key", s.APIKey}, {"State", d.dir}, {"Templates", strings.Join(names, ", ")}, {"Network", network},
	}
	if err := printPairs(indented{d.env.Stdout}, rows); err != nil {
		return err
	}
	if len(s.Links) > 0 {
		fmt.Fprintln(d.env.Stdout)
		var links [][]string
		for _, l := range s.Links {
			links = append(links, []string{l.Name, strings.TrimSpace(l.URL + "  " + l.Note)})
		}
		if err := printPairs(indented{d.env.Stdout}, links); err != nil {
			return err
		}
	}
	if made > 0 {
		fmt.Fprintf(d.env.Stdout, "\n    The template base was made in %s; the next start has it.\n", short(made))
	}
	d.explain(s, local)
	if d.first {
		if err := d.firstSandbox(ctx); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return nil
}

// networkText says what sandboxes reach here.
func (d *development) networkText(ctx context.Context) (string, error) {
	nodes, err := d.client.Nodes(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range nodes {
		for _, p := range n.Probes {
			switch {
			case p.Name != api.ProbeNetwork:
			case p.OK:
				return "sandboxes reach the internet, and nothing private", nil
			default:
				return "sandboxes have their loopback only: " + p.Reason, nil
			}
		}
	}
	return "not known yet", nil
}

func (d *development) explain(s *devserver.Server, local bool) {
	w := d.env.Stdout
	if local {
		fmt.Fprintf(w, "\nOther shells of this user find it by themselves. Elsewhere:\n\n")
	} else {
		fmt.Fprintf(w, "\nIn another shell:\n\n")
	}
	fmt.Fprintf(w, "    export %s=%s\n    export %s=%s\n", settings.EnvAddress, s.Address, settings.EnvAPIKey, s.APIKey)
	fmt.Fprintf(w, "\nTry it:\n\n    %s sandbox create -template=base\n    %s exec -it <id> bash\n", Name, Name)
	end := "the server and its sandboxes"
	if d.keep {
		end = "the server; the sandboxes go on"
	}
	fmt.Fprintf(w, "\nCtrl-C ends %s.\n", end)
}

// announce leaves address and key where other shells of this user look. It reports whether they do.
func (d *development) announce(s *devserver.Server) (bool, error) {
	if d.env.DevFile == "" {
		return false, nil
	}
	data := settings.Encode(map[string]string{settings.Address: s.Address, settings.APIKey: s.APIKey})
	if err := settings.Write(d.env.DevFile, data); err != nil {
		return false, err
	}
	src := settings.Sources{Env: d.env.Getenv, Dev: settings.LoadDev(d.env.DevFile)}
	if path, err := settings.Path(d.env.Getenv); err == nil {
		src.File, _ = settings.Load(path) // a broken one is reported by every other command
	}
	v, err := src.Get(settings.Address)
	return err == nil && v.Source == d.env.DevFile, nil
}

// firstSandbox shows that it works, from a create to the output of a program.
func (d *development) firstSandbox(ctx context.Context) error {
	w := d.env.Stdout
	fmt.Fprintf(w, "\n==> A first sandbox\n\n")
	start := time.Now()
	box, err := d.client.CreateSandbox(ctx, api.CreateRequest{Template: "base", Metadata: map[string]string{"made-by": "soulbox dev"}})
	if err != nil {
		return fmt.Errorf("first sandbox: %w", err)
	}
	fmt.Fprintf(w, "    %s runs after %s\n", box.ID, short(time.Since(start)))
	const script = `echo "Hello from $(hostname), as $(id -un), on Linux $(uname -r)"; python3 -c "print(6 * 7)"`
	fmt.Fprintf(w, "    $ sh -c '%s'\n", script)
	start = time.Now()
	exit, err := d.client.Run(ctx, box.ID, api.ExecRequest{Argv: []string{"sh", "-c", script}}, nil, indented{w}, indented{d.env.Stderr})
	if err != nil {
		return fmt.Errorf("first sandbox: %w", err)
	}
	fmt.Fprintf(w, "    exit code %d after %s\n", exit.Code, short(time.Since(start)))
	return nil
}

// endTime is how long the sandboxes get, in all, to end.
const endTime = 20 * time.Second

// end ends the sandboxes, then the server.
func (d *development) end(s *devserver.Server) error {
	var err error
	select {
	case <-s.Done(): // it ended by itself
	default:
		if !d.keep && d.client != nil {
			err = d.endSandboxes()
		}
	}
	if f := settings.LoadDev(d.env.DevFile); f.Values[settings.Address] == s.Address && f.Values[settings.APIKey] == s.APIKey && s.APIKey != "" {
		err = errors.Join(err, os.Remove(d.env.DevFile))
	}
	return errors.Join(err, s.Close())
}

func (d *development) endSandboxes() error {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	list, _, err := collect(ctx, d.client, api.ListOptions{}, 0)
	if err != nil || len(list) == 0 {
		return err
	}
	fmt.Fprintf(d.env.Stdout, "\n==> Ending %d sandboxes\n", len(list))
	ids := make([]api.SandboxID, 0, len(list))
	for _, s := range list {
		ids = append(ids, s.ID)
	}
	quiet := *d.env
	quiet.Stdout = discard{}
	return destroy(ctx, &quiet, d.client, ids)
}
