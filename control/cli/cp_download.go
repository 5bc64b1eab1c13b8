package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

// download copies src of the sandbox to dst of this machine.
func (c *copying) download(ctx context.Context, src, dst string) (transfer.Report, error) {
	if c.recursive {
		real, dir, err := c.isDir(ctx, src)
		if err != nil {
			return transfer.Report{}, err
		}
		if dir {
			return c.downloadDir(ctx, src, real, dst)
		}
	}
	body, info, err := c.client.ReadFile(ctx, c.id, src, c.opts)
	if err != nil {
		if errorCode(err) == "is_a_directory" && !c.recursive {
			err = fmt.Errorf("%s is a folder: -r copies it", src)
		}
		return transfer.Report{}, err
	}
	defer body.Close()
	p := c.progress(path.Base(src), info.Size)
	defer p.Done()
	if dst == "-" {
		_, err := io.Copy(c.env.Stdout, p.Reader(body))
		return transfer.Report{}, err
	}
	target := c.local(dst)
	if st, err := os.Stat(target); err == nil && st.IsDir() {
		name := path.Base(src)
		if name == "." || name == ".." || name == "/" || strings.ContainsRune(name, 0) {
			return transfer.Report{}, fmt.Errorf("%s has no name to write it under", src)
		}
		target = filepath.Join(target, name)
	} else if strings.HasSuffix(dst, "/") {
		return transfer.Report{}, fmt.Errorf("%s: there is no such folder", dst)
	}
	return transfer.Report{Files: 1}, saveFile(target, p.Reader(body), info)
}

// saveFile writes a file, whole or not at all. What exists and is no regular file, such as a pipe, is written into.
func saveFile(target string, r io.Reader, info api.File) (err error) {
	st, err := os.Stat(target)
	if err == nil && st.IsDir() {
		return fmt.Errorf("%s is a folder", target)
	}
	if err == nil && !st.Mode().IsRegular() {
		f, err := os.OpenFile(target, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	}
	if err == nil { // a link to a file: what it leads to is replaced, not the link
		if target, err = filepath.EvalSymlinks(target); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(filepath.Dir(target), ".soulbox-cp-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = io.Copy(f, r)
	// Set-user-id and its like are not for files that come out of a sandbox.
	if err = errors.Join(err, f.Chmod(fs.FileMode(info.Mode)&fs.ModePerm), f.Close()); err != nil {
		return err
	}
	if !info.ModTime.IsZero() {
		if err := os.Chtimes(f.Name(), info.ModTime, info.ModTime); err != nil {
			return err
		}
	}
	return os.Rename(f.Name(), target)
}

// downloadDir copies the folder that src names and that is at real. The folder is called after src.
func (c *copying) downloadDir(ctx context.Context, src, real, dst string) (transfer.Report, error) {
	body, err := c.client.ReadArchive(ctx, c.id, real, c.opts)
	if err != nil {
		return transfer.Report{}, err
	}
	defer body.Close()
	p := c.progress(path.Base(src), 0)
	defer p.Done()
	if dst == "-" {
		_, err := io.Copy(c.env.Stdout, p.Reader(body))
		return transfer.Report{}, err
	}
	// Names in the archive start with the last element of the path that was asked for; the root has none.
	target, strip := c.local(dst), 1
	if real == "/" {
		strip = 0
	}
	st, err := os.Stat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = os.Mkdir(target, 0o755)
	case err == nil && !st.IsDir():
		err = fmt.Errorf("%s is not a folder", dst)
	case err == nil && !content(src):
		// Into the folder, under the source's own name, which the archive does not choose.
		name := path.Base(path.Clean(src))
		if name == ".." || name == "/" {
			return transfer.Report{}, fmt.Errorf("%s has no name to write it under: %s/. copies its content", src, strings.TrimRight(src, "/"))
		}
		target = filepath.Join(target, name)
		if err = os.Mkdir(target, 0o755); errors.Is(err, fs.ErrExist) {
			err = nil
			if st, lerr := os.Lstat(target); lerr != nil || !st.IsDir() {
				err = fmt.Errorf("%s is not a folder", target)
			}
		}
	}
	if err != nil {
		return transfer.Report{}, err
	}
	return transfer.Unpack(ctx, target, p.Reader(body), strip)
}
