package cli

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/cli/login"
	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

func loginCommand(env *Env) *command {
	var (
		link      string
		noBrowser bool
		port      int64
	)
	return &command{
		synopsis: "Log in at the service as a person, in the browser",
		usage:    "[options]",
		about: `
Logs you in at the issuer of OpenID Connect that the service names: the
browser opens there, and comes back to a port of this machine. The token that
the issuer gives is kept for the service's address in logins.json beside the
settings file, which only you can read, and is renewed where the issuer does
that. From then on commands to that address use it, unless -api-key or
SOULBOX_API_KEY give a key.

The browser is the program in BROWSER, else xdg-open. On a machine without
one, open the URL elsewhere and forward the port of the callback:

    $ soulbox login -no-browser -callback-port=8250
    $ ssh -L 8250:127.0.0.1:8250 machine`,
		remote: true,
		flags: func(o *options) {
			o.String(&link, "link", "<name>", "Which of the service's issuers. Needed where it has several.", complete.PredictAnything)
			o.Switch(&noBrowser, "no-browser", "Only print the URL.")
			o.Int(&port, "callback-port", "<port>", "Port of this machine that the browser comes back to. Default = what the service says, else any.", 1)
		},
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			if port > 65535 {
				return usagef("-callback-port: %d is not between 1 and 65535", port)
			}
			store, address, err := conn.logins()
			if err != nil {
				return err
			}
			with, err := pickLink(ctx, address, link)
			if err != nil {
				return err
			}
			if port == 0 {
				port = int64(with.CallbackPort)
			}
			l, err := login.Run(ctx, login.Config{
				Issuer: with.Issuer, ClientID: with.ClientID, Scopes: with.Scopes, Port: int(port),
				Show: func(url string) error { return env.showLogin(ctx, url, noBrowser) },
			})
			if err != nil {
				return fmt.Errorf("log in: %w", err)
			}
			l.Link = with.Name
			who, err := whoIs(ctx, address, l.IDToken)
			if err != nil {
				return fmt.Errorf("the issuer has let you in, the service has not: %w", err)
			}
			if err := store.Put(ctx, address, l); err != nil {
				return err
			}
			until := "until " + l.ExpiresAt.Local().Format(time.DateTime)
			if l.RefreshToken != "" {
				until = "renewed as long as the issuer does"
			}
			_, err = fmt.Fprintf(env.Stdout, "You are %s at %s, in tenant %s; %s.\n", printable(who.User), address, printable(who.Tenant), until)
			if conn.keyGoesFirst() {
				fmt.Fprintf(env.Stderr, "Note: %s is set in this shell and goes before the login.\n", settings.EnvAPIKey)
			}
			return err
		},
	}
}

func logoutCommand(env *Env) *command {
	var all bool
	return &command{
		synopsis: "Forget the login at the service",
		usage:    "[options]",
		about: `
Forgets the login at the service's address. The issuer's own session in the
browser goes on, and the token that was forgotten is good until its end.`,
		remote: true,
		flags:  func(o *options) { o.Switch(&all, "all", "Forget the logins at all services.") },
		run: func(ctx context.Context, conn *connection, args []string) error {
			if len(args) > 0 {
				return usagef("the command takes no arguments: %.60q", args[0])
			}
			store, address, err := conn.logins()
			if err != nil {
				return err
			}
			if all {
				return store.Clear()
			}
			was, err := store.Remove(ctx, address)
			if err != nil {
				return err
			}
			if !was {
				fmt.Fprintf(env.Stderr, "You are not logged in at %s.\n", address)
			}
			return nil
		},
	}
}

// pickLink asks the service where people log in. It is asked without a key.
func pickLink(ctx context.Context, address, name string) (api.AuthLink, error) {
	client, err := api.New(api.Config{Address: address, UserAgent: "soulbox-cli/" + version.Version})
	if err != nil {
		return api.AuthLink{}, err
	}
	defer client.Close()
	list, err := client.AuthLinks(ctx)
	if err != nil {
		return api.AuthLink{}, fmt.Errorf("ask where to log in: %w", err)
	}
	var names []string
	for _, l := range list {
		if l.Name == name || name == "" && len(list) == 1 {
			return l, nil
		}
		names = append(names, printable(l.Name))
	}
	switch {
	case len(list) == 0:
		return api.AuthLink{}, fmt.Errorf("people cannot log in at %s: it has no auth.oidc in its configuration", address)
	case name == "":
		return api.AuthLink{}, usagef("-link is missing: the service has %s", strings.Join(names, ", "))
	}
	return api.AuthLink{}, usagef("-link: the service has no %.60q, but %s", name, strings.Join(names, ", "))
}

// whoIs asks the service whose token it is.
func whoIs(ctx context.Context, address, token string) (api.Whoami, error) {
	client, err := api.New(api.Config{Address: address, APIKey: token, UserAgent: "soulbox-cli/" + version.Version})
	if err != nil {
		return api.Whoami{}, err
	}
	defer client.Close()
	return client.Whoami(ctx)
}

// showLogin opens a browser, or says what to open.
func (e *Env) showLogin(ctx context.Context, url string, noBrowser bool) error {
	program := e.browser()
	if noBrowser || program == "" {
		_, err := fmt.Fprintf(e.Stderr, "Open this in your browser to log in:\n\n    %s\n\n", url)
		return err
	}
	fmt.Fprintf(e.Stderr, "Your browser opens to log you in. If it does not, open this:\n\n    %s\n\n", url)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, url) // it may well outlive this program
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(e.Stderr, "The browser did not start: %v\n", err)
		return nil
	}
	return cmd.Process.Release()
}

// browser is the program that opens a URL, where there is a screen.
func (e *Env) browser() string {
	if b := e.Getenv("BROWSER"); b != "" && !strings.ContainsAny(b, ":% ") {
		return b
	}
	if e.Getenv("DISPLAY") == "" && e.Getenv("WAYLAND_DISPLAY") == "" {
		return ""
	}
	path, err := exec.LookPath("xdg-open")
	if err != nil {
		return ""
	}
	return path
}
