package cli

import (
	"io"
	"os"
	"path/filepath"
)

// inDir is a path of this machine as seen from the working directory.
func (e *Env) inDir(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(e.Dir, path)
}

// open opens a file that an argument names; "-" is standard input, which Close leaves open.
func (e *Env) open(name string) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(e.Stdin), nil
	}
	return os.Open(e.inDir(name))
}
