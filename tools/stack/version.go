package stack

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"time"

	"github.com/hashicorp/go-version"
)

// A program prints its name and version first: "Nomad v1.11.3", "Version: 4.1.1", "CNI host-local plugin v1.10.0".
var versionPattern = regexp.MustCompile(`(?m)^(?:\w+ v|CNI [\w-]+ plugin v|Version: )([0-9]+(?:\.[0-9]+)+[^ \n,]*)`)

// version runs the program at path and returns the version that it prints.
func (t Tool) version(path string) (*version.Version, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, t.arg)
	var said bytes.Buffer
	cmd.Stdout = &said
	if t.arg == "" { // one of those that say it on stderr, unless they are told to do something
		cmd.Args, cmd.Stderr, cmd.Env = cmd.Args[:1], &said, []string{}
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w", path, t.arg, err)
	}
	out := said.String()
	return parseVersion(path, out)
}

func parseVersion(path, out string) (*version.Version, error) {
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("%s prints no version, but %.100q", path, out)
	}
	v, err := version.NewVersion(m[1])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}
