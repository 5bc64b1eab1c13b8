package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

func init() {
	// sums are those of files, as they are read through the page cache.
	works["sums"] = func(paths []string) error {
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Printf("%x %s\n", sha256.Sum256(b), path)
		}
		return nil
	}
	works["leaks"] = func(args []string) error {
		switch args[0] {
		case "descriptors":
			return descriptors()
		case "mounts":
			return print("/proc/self/mountinfo", "/proc/self/cgroup")
		case "environment":
			for _, e := range os.Environ() {
				fmt.Println(e)
			}
			return nil
		}
		return fmt.Errorf("no such leak: %s", args[0])
	}
	// readable walks /proc, but not its processes, and lists what says something, with the number of bytes up to 4 KiB.
	works["readable"] = func([]string) error {
		return walkProc(func(path string) {
			if n := readSome(path); n > 0 {
				fmt.Printf("%s\t%d\n", path, n)
			}
		})
	}
	// writable walks the same and lists what opens for writing.
	works["writable"] = func([]string) error {
		return walkProc(func(path string) {
			if got := openAt(path, os.O_WRONLY); got == "ok" {
				fmt.Println(path)
			}
		})
	}
}

func readSome(path string) int {
	f, err := os.OpenFile(path, os.O_RDONLY|0o4000, 0) // O_NONBLOCK
	if err != nil {
		return 0
	}
	defer f.Close()
	n, _ := f.Read(make([]byte, 4096))
	return n
}

func walkProc(f func(path string)) error {
	return filepath.WalkDir("/proc", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil // it may not even be listed
		}
		if _, err := strconv.Atoi(d.Name()); err == nil && filepath.Dir(path) == "/proc" {
			return filepath.SkipDir
		}
		// What is masked by a device looks like a file in the directory.
		if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() {
			f(path)
		}
		return nil
	})
}

// descriptors lists what all processes that show theirs have open, apart from what Go's runtime opens by itself.
func descriptors() error {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(to, ":[")
		seen[kind] = true
	}
	var out []string
	for k := range seen {
		out = append(out, k)
	}
	sort.Strings(out)
	fmt.Println(strings.Join(out, "\n"))
	return nil
}

func print(paths ...string) error {
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		fmt.Println(strings.ReplaceAll(string(b), "\x00", " "))
	}
	return nil
}
