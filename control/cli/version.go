package cli

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
)

// versions is the output of version -json.
type versions struct {
	Client clientVersion    `json:"client"`
	Server *api.VersionInfo `json:"server,omitempty"`
	// ServerError says why the server's version is not known.
	ServerError string `json:"server_error,omitempty"`
}

type clientVersion struct {
	Version    string `json:"version"`
	Commit     string `json:"commit,omitempty"`
	APIVersion int    `json:"api_version"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
}

func versionCommand(env *Env) *command {
	var asJSON bool
	return &command{
		synopsis: "Show the versions of client and server",
		usage:    "[options]",
		about: `
Shows the version of this program and of the server, and whether they work
together. A server that does not answer is no error.`,
		remote: true,
		flags: func(o *options) {
			o.Switch(&asJSON, "json", "Print the versions as JSON.")
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			v := versions{Client: clientVersion{
				Version: version.Version, Commit: version.Commit(), APIVersion: version.API,
				Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
			}}
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			client, err := conn.client()
			if err == nil {
				var info api.VersionInfo
				if info, err = client.Version(ctx); err == nil {
					v.Server = &info
				}
			}
			if err != nil {
				v.ServerError = err.Error()
			}
			if asJSON {
				return printJSON(env.Stdout, v)
			}
			rows := [][]string{
				{"", "Version", "API", "Commit"},
				{"Client", "v" + v.Client.Version, fmt.Sprint(v.Client.APIVersion), v.Client.Commit},
			}
			if s := v.Server; s != nil {
				rows = append(rows, []string{"Server", "v" + s.Version, fmt.Sprint(s.APIVersion), s.Commit})
			}
			rows[0][0] = "Part"
			if err := printTable(env.Stdout, rows); err != nil {
				return err
			}
			if v.Server == nil {
				fmt.Fprintf(env.Stderr, "The server's version is not known: %s\n", printable(v.ServerError))
				return nil
			}
			if err := compatible(*v.Server); err != nil {
				return err
			}
			return nil
		},
	}
}

// compatible says whether this program may speak to that server.
func compatible(s api.VersionInfo) error {
	if s.MinClient != "" {
		if err := version.Compatible("client", version.Version, s.MinClient); err != nil {
			return err
		}
	}
	if s.APIVersion < version.API || s.MinAPIVersion > version.API {
		return fmt.Errorf("this program speaks version %d of the API, the server %d to %d", version.API, s.MinAPIVersion, s.APIVersion)
	}
	return nil
}
