package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/posener/complete"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/cli/login"
	"github.com/soulbox-dev/soulbox/control/cli/session"
	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

// connection is how a command reaches the service: the general options, and the client that they make.
type connection struct {
	env     *Env
	address string
	apiKey  string
	stale   bool
	ages    api.Stale // of what was read, where stale

	once    sync.Once
	sources settings.Sources
	err     error
	api     *api.Client
	key     settings.Value // the API key in use
	release func()         // gives signals back to the program
}

func (c *connection) options(o *options) {
	o.String(&c.address, "address", "<addr>", "Address of the control service, as a URL or host:port. Overrides the environment variable "+
		settings.EnvAddress+" and the setting address. Default = "+settings.DefaultAddress+".", complete.PredictAnything)
	o.String(&c.apiKey, "api-key", "<key>", "API key. Overrides the environment variable "+settings.EnvAPIKey+
		" and the setting api_key. Other users of this machine can see it in the list of processes: prefer the variable.", complete.PredictAnything)
	o.Switch(&c.stale, "stale", "Read from whichever control server the address is of, also while none leads. How old that may be is said on stderr.")
}

// reads returns the context of a command's calls.
func (c *connection) reads(ctx context.Context) context.Context {
	if !c.stale {
		return ctx
	}
	return api.AllowStale(ctx, &c.ages)
}

// sayAge tells how old may be what a command has shown.
func (c *connection) sayAge() {
	if age, ok := c.ages.Age(); ok && c.stale {
		fmt.Fprintf(c.env.Stderr, "This may be %s old.\n", age)
	}
}

// settings loads what is set where, once.
func (c *connection) settings() (settings.Sources, error) {
	c.once.Do(func() {
		c.sources = settings.Sources{
			Flags: map[string]string{settings.Address: c.address, settings.APIKey: c.apiKey},
			Env:   c.env.Getenv,
		}
		path, err := settings.Path(c.env.Getenv)
		if err == nil {
			c.sources.File, err = settings.Load(path)
		} else if c.env.Getenv(settings.EnvAddress) != "" || c.address != "" {
			err = nil // no home, as in a service's environment: the rest is enough
		}
		if c.env.DevFile != "" {
			c.sources.Dev = settings.LoadDev(c.env.DevFile)
		}
		c.err = err
	})
	return c.sources, c.err
}

// client returns the client of the service.
func (c *connection) client() (*api.Client, error) {
	if c.api != nil {
		return c.api, nil
	}
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	if s.File.Loose {
		fmt.Fprintf(c.env.Stderr, "Warning: %s holds an API key and others can read it: chmod 600 %s\n", s.File.Path, filepath.Clean(s.File.Path))
	}
	addr, err := s.Get(settings.Address)
	if err != nil {
		return nil, err
	}
	if c.key, err = c.credential(s, addr.Value); err != nil {
		return nil, err
	}
	c.api, err = api.New(api.Config{Address: addr.Value, APIKey: c.key.Value, UserAgent: "soulbox-cli/" + version.Version})
	return c.api, err
}

// credential is the API key, or the token of the login at the service: a key in a flag or in the environment goes before a login, and a
// login before the key of a file.
func (c *connection) credential(s settings.Sources, address string) (settings.Value, error) {
	key, err := s.Get(settings.APIKey)
	if err != nil || s.File.Path == "" || c.keyGoesFirst() {
		return key, err
	}
	store := login.NewStore(s.File.Path)
	ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
	defer cancel()
	l, ok, err := store.Fresh(ctx, address, time.Now())
	if err != nil {
		return key, fmt.Errorf("the login at %s: %w", address, err)
	}
	if ok {
		key.Value, key.Source = l.IDToken, loginSource
	}
	return key, nil
}

// keyGoesFirst reports whether a key is given that goes before a login.
func (c *connection) keyGoesFirst() bool {
	return c.apiKey != "" || c.env.Getenv(settings.EnvAPIKey) != ""
}

// logins returns the file with the logins, and the address of the service.
func (c *connection) logins() (*login.Store, string, error) {
	s, err := c.settings()
	if err != nil {
		return nil, "", err
	}
	path, err := settings.Path(c.env.Getenv)
	if err != nil {
		return nil, "", err
	}
	addr, err := s.Get(settings.Address)
	return login.NewStore(path), addr.Value, err
}

const (
	loginSource  = "login"
	renewTimeout = 30 * time.Second
)

func (c *connection) close() {
	if c.api != nil {
		c.api.Close()
	}
}

// template returns the template of new sandboxes where neither a flag nor a project names one.
func (c *connection) template() (string, error) {
	s, err := c.settings()
	if err != nil {
		return "", err
	}
	v, err := s.Get(settings.Template)
	return v.Value, err
}

// screen returns stderr where it is a terminal: there, and only there, is progress shown.
func (e *Env) screen() (fd fileWriter, ok bool) { return terminalOf(e.Stderr) }

// fileWriter is a writer that is a file, as os.Stderr.
type fileWriter interface {
	Write([]byte) (int, error)
	Fd() uintptr
}

func terminalOf(w any) (fileWriter, bool) {
	f, ok := w.(fileWriter)
	if !ok || !session.IsTerminalFd(f.Fd()) {
		return nil, false
	}
	return f, true
}
