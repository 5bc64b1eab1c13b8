// Command vault-plugin-secrets-soulbox is Vault's secrets engine for SoulBox. Vault starts it; it does nothing by itself.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/plugin"

	"github.com/soulbox-dev/soulbox/control/api/version"
	soulboxsecrets "github.com/soulbox-dev/soulbox/vault-plugin"
)

func main() {
	if len(os.Args) == 2 && (os.Args[1] == "version" || os.Args[1] == "-version" || os.Args[1] == "--version") {
		fmt.Println("vault-plugin-secrets-soulbox v" + version.Version)
		return
	}
	// Vault reads the log from standard error, one JSON object a line; standard output is the handshake's.
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: os.Stderr, JSONFormat: true})
	// It may be one process for many mounts. Vault's own TLS for plugins is set up by the handshake.
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: soulboxsecrets.Factory, Logger: log}); err != nil {
		log.Error("plugin ended", "error", err)
		os.Exit(1)
	}
}
