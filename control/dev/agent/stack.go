package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// StackEnv names a folder with the executables of the stack.
const StackEnv = "SOULBOX_STACK"

// Find returns the path of an executable of the stack (nomad, consul, vault): in the folder that SOULBOX_STACK names, else
// in PATH, else where `make stack` puts it.
func Find(name string) (string, error) {
	if dir := os.Getenv(StackEnv); dir != "" {
		path, err := exec.LookPath(filepath.Join(dir, name))
		if err != nil {
			return "", fmt.Errorf("%s is not in %s: %w", name, StackEnv, err)
		}
		return filepath.Abs(path)
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%s is not in PATH: %w", name, err)
	}
	path, err := exec.LookPath(filepath.Join(cache, "soulbox", "stack", "bin", name))
	if err != nil {
		return "", fmt.Errorf("%s is neither in PATH nor in the stack: run `make stack`, or name its folder in %s", name, StackEnv)
	}
	return path, nil
}
