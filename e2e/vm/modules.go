package vm

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// moduleOrder returns the files below dir (…/lib/modules/<version>) of the named modules and of all that they depend on,
// dependencies first. A name that modules.dep does not list is built in, or an error where modules.builtin does not list
// it either.
func moduleOrder(dir string, names []string) ([]string, error) {
	deps, err := readDeps(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	var order []string
	done := map[string]bool{}
	for _, name := range names {
		file, ok := deps.file[name]
		if !ok {
			if strings.Contains(string(builtin), "/"+name+".ko") {
				continue
			}
			return nil, fmt.Errorf("kernel module %s: not in %s", name, dir)
		}
		// modules.dep lists the whole closure, the nearest dependency first.
		chain := append([]string{file}, deps.needs[file]...)
		for i := len(chain) - 1; i >= 0; i-- {
			if !done[chain[i]] {
				done[chain[i]] = true
				order = append(order, chain[i])
			}
		}
	}
	return order, nil
}

type moduleDeps struct {
	file  map[string]string   // module name → file
	needs map[string][]string // file → files it needs
}

func readDeps(path string) (moduleDeps, error) {
	d := moduleDeps{file: map[string]string{}, needs: map[string][]string{}}
	f, err := os.Open(path)
	if err != nil {
		return d, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		file, rest, ok := strings.Cut(s.Text(), ":")
		if !ok {
			continue
		}
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
		d.file[name] = file
		d.needs[file] = strings.Fields(rest)
	}
	return d, s.Err()
}
