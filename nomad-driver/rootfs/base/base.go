// Package base makes the templates that SoulBox brings: base, a small Debian with a user, a shell, Python, Node, git and curl;
// and the code interpreter, which is base with kernels for Python, JavaScript, TypeScript and bash, and a server before them.
//
// It owns what is in these templates and the cache of them. It makes a tar and nothing else; a template store takes it from there.
package base

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Name is the name under which the base template is imported where nothing else is said.
const Name = "base"

// Recipe says what is in a template.
type Recipe struct {
	Name     string   // under which it is imported where nothing else is said
	packages []string // of the distribution, besides those of base
	// files are put into the folder /usr/lib/soulbox/<Name> of the template, and script, run as sh with that folder and the root as its
	// arguments, comes after base's own.
	files  fs.FS
	script string
}

// Base is the recipe of the base template.
var Base = Recipe{Name: Name}

// Interpreter is the recipe of the code interpreter.
var Interpreter = Recipe{
	Name: "code-interpreter-v1",
	packages: []string{
		"esbuild", "node-acorn", "python3-ipython", "python3-matplotlib", "python3-numpy", "python3-pandas", "python3-requests",
		// What code that models write imports as a matter of course; plotly shows figures by nbformat.
		"python3-bs4", "python3-lxml", "python3-nbformat", "python3-openpyxl", "python3-plotly", "python3-scipy", "python3-seaborn", "python3-sklearn", "python3-sympy",
	},
	files:  interpreter,
	script: interpreterScript,
}

// Recipes are all recipes.
func Recipes() []Recipe { return []Recipe{Base, Interpreter} }

//go:embed interpreter/*.py interpreter/*.js
var interpreter embed.FS

//go:embed interpreter/install.sh
var interpreterScript string

// suite is the Debian release. The mirror is mmdebstrap's own default for it.
const suite = "trixie"

var packages = []string{
	"attr", "bash", "ca-certificates", "curl", "git", "iproute2", "less", "libnss-myhostname", "ncurses-bin", "netbase", "nodejs", "procps",
	"python-is-python3", "python3", "python3-pip", "python3-venv", "sudo", "unzip", "xz-utils",
}

// dpkgOptions leave out what nobody reads in a sandbox. They hold for packages that are installed later as well.
var dpkgOptions = []string{
	"path-exclude=/usr/share/man/*",
	"path-exclude=/usr/share/info/*",
	"path-exclude=/usr/share/doc/*",
	"path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/locale/*",
	"path-include=/usr/share/locale/locale.alias",
}

//go:embed customize.sh
var customize string

// Options of Build. The zero value builds quietly into the user's cache.
type Options struct {
	Recipe   Recipe    // the zero value is Base
	Dir      string    // of the cache; empty is soulbox/base in the user's cache directory
	Progress io.Writer // gets a line for each step of a build; nil is nowhere
	Refresh  bool      // build even if a tar is there, for the packages of today
}

// Pins is a short hash over everything that this program decides about the base template; the packages' own versions are those
// of the day of the build. There is one tar in the cache for each.
func Pins() string { return Base.pins() }

func (r Recipe) pins() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s\n%s", suite, runtime.GOARCH, strings.Join(r.all(), ","), strings.Join(dpkgOptions, ","), customize)
	if r.files != nil {
		fmt.Fprintf(h, "\n%s", r.script)
		for _, name := range r.names() {
			b, _ := fs.ReadFile(r.files, name) // embedded: it is there
			fmt.Fprintf(h, "\n%s %d\n%s", name, len(b), b)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// all returns the packages, base's first.
func (r Recipe) all() []string { return slices.Concat(packages, r.packages) }

// names returns the paths of the recipe's files.
func (r Recipe) names() []string {
	names, _ := fs.Glob(r.files, "*/*") // the pattern is well formed
	return names
}

// Cached returns the path of the base template's tar and whether it is there.
func Cached(dir string) (string, bool, error) { return Base.cached(dir) }

func (r Recipe) cached(dir string) (string, bool, error) {
	dir, err := cacheDir(dir)
	if err != nil {
		return "", false, err
	}
	path := filepath.Join(dir, r.Name+"-"+r.pins()+".tar")
	st, err := os.Stat(path)
	return path, err == nil && st.Mode().IsRegular(), nil
}

func cacheDir(dir string) (string, error) {
	if dir != "" {
		return filepath.Abs(dir)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		// A service has no home.
		if os.Geteuid() != 0 {
			return "", fmt.Errorf("cache of the base template: %w", err)
		}
		user = "/var/cache"
	}
	return filepath.Join(user, "soulbox", "base"), nil
}

// Build returns the path of the template's tar, after it made it if it was not in the cache. That takes half a minute, needs
// root and the network, and installs mmdebstrap with apt-get where it is missing. Of several callers at once, in whatever
// process, one builds and the others wait.
func Build(ctx context.Context, o Options) (string, error) {
	if o.Recipe.Name == "" {
		o.Recipe = Base
	}
	path, ok, err := o.Recipe.cached(o.Dir)
	if err != nil || ok && !o.Refresh {
		return path, err
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cache of the base template: %w", err)
	}
	lock, err := lockFile(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, ok, err = o.Recipe.cached(o.Dir); err != nil || ok && !o.Refresh {
		return path, err // somebody else built it meanwhile
	}
	if err := build(ctx, o.Recipe, path, o.Progress); err != nil {
		return "", fmt.Errorf("build the %s template: %w", o.Recipe.Name, err)
	}
	return path, nil
}

// lockFile waits for the lock on path. Closing the file releases it.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-time.After(100 * time.Millisecond): // flock cannot be waited for together with a context
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		}
	}
}
