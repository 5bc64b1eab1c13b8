package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/cli/service"
)

func serverCommand(env *Env) *command {
	var (
		path  string
		flags service.File
	)
	return &command{
		synopsis: "Run a server of the control service",
		usage:    "[options]",
		about: `
Runs a server of the control service until it gets SIGINT or SIGTERM.
Sandboxes go on without it. At its first start it makes an API key, prints it
and writes it to the file bootstrap-key in its data folder.

With a block nomad, Nomad places the sandboxes; without, the node of this
machine makes them (nomad-driver-soulbox node). A flag goes before the file.

    $ soulbox server -config=/etc/soulbox/server.hcl

A configuration file:

    listen   = "0.0.0.0:7300"
    data_dir = "/var/lib/soulbox/server"

    tls {
      cert_file = "/etc/soulbox/tls/server.pem"
      key_file  = "/etc/soulbox/tls/server-key.pem"
    }
    nomad  { address = "https://nomad.example.com:4646" }
    consul { address = "127.0.0.1:8500" }
    vault  { address = "https://vault.example.com:8200" }`,
		flags: func(o *options) {
			o.String(&path, "config", "<file>", "Configuration file, in HCL.", complete.PredictFiles("*.hcl"))
			o.String(&flags.Listen, "listen", "<addr>", "host:port of the API. Default = "+service.DefaultListen+".", nil)
			o.String(&flags.DataDir, "data-dir", "<path>", "Folder for the state. Default = "+service.DefaultDataDir+".", complete.PredictDirs("*"))
			o.String(&flags.LogLevel, "log-level", "<level>", "trace, debug, info, warn or error. Default = info.",
				complete.PredictSet("trace", "debug", "info", "warn", "error"))
			o.Switch(&flags.LogJSON, "log-json", "Write the log as JSON.")
		},
		run: func(ctx context.Context, _ *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			var file service.File
			if path != "" {
				var err error
				if file, err = service.ReadFile(path); err != nil {
					return err
				}
			}
			over(&file.Listen, flags.Listen)
			over(&file.DataDir, flags.DataDir)
			over(&file.LogLevel, flags.LogLevel)
			file.LogJSON = file.LogJSON || flags.LogJSON
			file = file.WithDefaults()
			if err := file.Check(); err != nil {
				return err
			}
			log := hclog.New(&hclog.LoggerOptions{
				Name: "soulbox", Level: hclog.LevelFromString(file.LogLevel), JSONFormat: file.LogJSON, Output: env.Stderr,
			})
			cfg, err := file.Config(ctx, os.Getenv, log)
			if err != nil {
				return err
			}
			s, err := service.Open(ctx, cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "==> SoulBox server running at %s\n", s.Address())
			if s.Core.Bootstrapped {
				fmt.Fprintf(env.Stdout, "    First API key, shown this once and kept in %s:\n    %s\n", s.Core.BootstrapFile, s.Core.Bootstrap.Key())
			}
			return s.Run(ctx)
		},
	}
}

func over(p *string, v string) {
	if v != "" {
		*p = v
	}
}
