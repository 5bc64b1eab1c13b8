package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/soulbox-dev/soulbox/control/cli/transfer"
)

// upload copies src of this machine to dst of the sandbox.
func (c *copying) upload(ctx context.Context, src, dst string) (transfer.Report, error) {
	if src == "-" {
		return transfer.Report{}, c.uploadStdin(ctx, dst)
	}
	local := c.local(src)
	st, err := os.Stat(local)
	if err != nil {
		return transfer.Report{}, err
	}
	if st.IsDir() {
		if !c.recursive {
			return transfer.Report{}, fmt.Errorf("%s is a folder: -r copies it", src)
		}
		return c.uploadDir(ctx, src, local, dst)
	}
	name := filepath.Base(local)
	into := strings.HasSuffix(dst, "/") || content(dst)
	if !into {
		if _, into, err = c.isDir(ctx, dst); err != nil {
			return transfer.Report{}, err
		}
	}
	if into {
		dst = path.Join(dst, name)
	}
	f, err := os.Open(local)
	if err != nil {
		return transfer.Report{}, err
	}
	defer f.Close()
	if st, err = f.Stat(); err != nil {
		return transfer.Report{}, err
	}
	o := c.opts
	o.Mode = uint32(st.Mode().Perm())
	total := int64(0)
	if st.Mode().IsRegular() {
		total = st.Size()
	}
	p := c.progress(name, total)
	defer p.Done()
	err = c.client.WriteFile(ctx, c.id, dst, p.Reader(f), o)
	return transfer.Report{Files: 1}, err
}

func (c *copying) uploadStdin(ctx context.Context, dst string) error {
	p := c.progress("-", 0)
	defer p.Done()
	if c.recursive {
		return c.client.WriteArchive(ctx, c.id, dst, p.Reader(c.env.Stdin), c.opts)
	}
	_, into, err := c.isDir(ctx, dst)
	if err != nil {
		return err
	}
	if into || strings.HasSuffix(dst, "/") {
		return errors.New("the target is a folder: standard input needs the name of a file")
	}
	err = c.client.WriteFile(ctx, c.id, dst, p.Reader(c.env.Stdin), c.opts)
	return err
}

func (c *copying) uploadDir(ctx context.Context, src, local, dst string) (transfer.Report, error) {
	if !content(src) {
		_, into, err := c.isDir(ctx, dst)
		if err != nil {
			return transfer.Report{}, err
		}
		if into {
			dst = path.Join(dst, filepath.Base(local))
		}
	}
	stream := transfer.Packed(ctx, local)
	p := c.progress(filepath.Base(local), 0)
	err := c.client.WriteArchive(ctx, c.id, dst, p.Reader(stream), c.opts)
	p.Done()
	_ = stream.Close()
	// What went wrong on this side is what the service saw as a broken upload.
	if stream.Err != nil && !errors.Is(stream.Err, context.Canceled) && ctx.Err() == nil && err != nil {
		err = stream.Err
	}
	return stream.Report, err
}

// local is a path of this machine as seen from the working directory.
func (c *copying) local(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(c.env.Dir, p)
}
