// Package cli is the command line of SoulBox: every command of the program soulbox, its flags, help, completion and errors.
//
// It owns what people type and read. It speaks to the service through package api alone, like every other client; only the
// commands server and dev, which run the service, and audit verify, which reads its files, know more. It never decides
// anything that the service decides.
package cli

import (
	"fmt"
	"io"
	"maps"
	"os"
	"strings"

	"github.com/hashicorp/cli"

	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

// Name is the name of the program.
const Name = "soulbox"

// Env is what a command sees of the world around it.
type Env struct {
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
	Dir    string // working directory
	// DevFile is where a development server of this machine leaves its address and key; empty: nowhere.
	DevFile string
}

// System returns the environment of this process.
func System() (*Env, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("working directory: %w", err)
	}
	return &Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Dir: dir, DevFile: settings.DevPath,
	}, nil
}

// Run runs the command that args (without the program's name) ask for and returns the program's exit code.
func Run(env *Env, args []string) int {
	c := &cli.CLI{
		Name:         Name,
		Version:      versionLine(),
		Args:         protectExec(env, args),
		Commands:     commands(env),
		Autocomplete: true,
		HelpFunc:     help(env),
		HelpWriter:   env.Stdout,
		ErrorWriter:  env.Stderr,
	}
	if all := commands(env); len(args) > 0 && !strings.HasPrefix(args[0], "-") && all[args[0]] == nil {
		fmt.Fprintf(env.Stderr, "Error: there is no command %q\n\n", printable(args[0]))
	}
	code, err := c.Run()
	if err != nil {
		fmt.Fprintf(env.Stderr, "Error: %s\n", printable(err.Error()))
		return 1
	}
	return code
}

func versionLine() string {
	line := "SoulBox v" + version.Version
	if c := version.Commit(); c != "" {
		line += " (" + c + ")"
	}
	return line
}

// commands are all commands by name.
func commands(env *Env) map[string]cli.CommandFactory {
	all := map[string]func(*Env) *command{
		"server":             serverCommand,
		"dev":                devCommand,
		"init":               initCommand,
		"config":             configCommand,
		"config get":         configGetCommand,
		"config set":         configSetCommand,
		"config list":        configListCommand,
		"config path":        configPathCommand,
		"sandbox":            sandboxCommand,
		"sandbox create":     sandboxCreateCommand,
		"sandbox list":       sandboxListCommand,
		"sandbox info":       sandboxInfoCommand,
		"sandbox destroy":    sandboxDestroyCommand,
		"sandbox limits":     sandboxLimitsCommand,
		"sandbox pause":      sandboxPauseCommand,
		"sandbox resume":     sandboxResumeCommand,
		"sandbox fork":       sandboxForkCommand,
		"snapshot":           snapshotCommand,
		"snapshot create":    snapshotCreateCommand,
		"snapshot list":      snapshotListCommand,
		"snapshot info":      snapshotInfoCommand,
		"snapshot restore":   snapshotRestoreCommand,
		"snapshot delete":    snapshotDeleteCommand,
		"exec":               execCommand,
		"cp":                 cpCommand,
		"logs":               logsCommand,
		"terminal":           terminalCommand,
		"terminal list":      terminalListCommand,
		"terminal attach":    terminalAttachCommand,
		"terminal kill":      terminalKillCommand,
		"link":               linkCommand,
		"link create":        linkCreateCommand,
		"template":           templateCommand,
		"template import":    templateImportCommand,
		"template make":      templateMakeCommand,
		"template list":      templateListCommand,
		"template delete":    templateDeleteCommand,
		"template network":   templateNetworkCommand,
		"template placement": templatePlacementCommand,
		"network":            networkCommand,
		"network show":       networkShowCommand,
		"network set":        networkSetCommand,
		"network shape":      networkShapeCommand,
		"network test":       networkTestCommand,
		"network publish":    networkPublishCommand,
		"network join":       networkJoinCommand,
		"network leave":      networkLeaveCommand,
		"node":               nodeCommand,
		"node audit":         nodeAuditCommand,
		"node list":          nodeListCommand,
		"node info":          nodeInfoCommand,
		"node drain":         nodeDrainCommand,
		"node mark":          nodeMarkCommand,
		"node resume":        nodeResumeCommand,
		"node rebalance":     nodeRebalanceCommand,
		"login":              loginCommand,
		"logout":             logoutCommand,
		"auth":               authCommand,
		"auth whoami":        authWhoamiCommand,
		"auth can-i":         authCanICommand,
		"key":                keyCommand,
		"key list":           keyListCommand,
		"key create":         keyCreateCommand,
		"key revoke":         keyRevokeCommand,
		"role":               roleCommand,
		"role list":          roleListCommand,
		"role show":          roleShowCommand,
		"role put":           rolePutCommand,
		"role delete":        roleDeleteCommand,
		"binding":            bindingCommand,
		"binding list":       bindingListCommand,
		"binding create":     bindingCreateCommand,
		"binding delete":     bindingDeleteCommand,
		"tenant":             tenantCommand,
		"tenant list":        tenantListCommand,
		"tenant create":      tenantCreateCommand,
		"tenant update":      tenantUpdateCommand,
		"tenant network":     tenantNetworkCommand,
		"tenant suspend":     tenantSuspendCommand,
		"tenant resume":      tenantResumeCommand,
		"tenant delete":      tenantDeleteCommand,
		"version":            versionCommand,
	}
	maps.Copy(all, auditCommands())
	maps.Copy(all, quotaCommands())
	maps.Copy(all, poolCommands())
	maps.Copy(all, secretCommands())
	maps.Copy(all, operatorCommands())
	out := make(map[string]cli.CommandFactory, len(all))
	for name, make := range all {
		out[name] = func() (cli.Command, error) {
			c := make(env)
			c.env, c.name = env, name
			return c, nil
		}
	}
	return out
}
