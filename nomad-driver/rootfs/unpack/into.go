package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// The kinds of archive.
const (
	KindTar = "tar"
	KindOCI = "oci"
)

// Into unpacks the archive r into the new directory dir/root, which is complete and safe to use as a template's root when it
// returns without error. Other names below dir may be used meanwhile. The caller makes dir, on the file system that the tree
// is to stay on, and removes it on error.
func Into(ctx context.Context, dir string, r io.Reader, o Options) (Result, error) {
	limits := defaultLimits.With(o.Limits)
	root := filepath.Join(dir, "root")
	b := &budget{limits: limits, progress: o.Progress}
	w, err := unpackTar(ctx, root, r, b)
	if err != nil {
		return Result{}, SpaceError(err)
	}
	res := Result{Kind: KindTar}
	if isLayout(root) {
		if err := w.dirs.close(); err != nil {
			return Result{}, err
		}
		layout := filepath.Join(dir, "layout")
		if err := os.Rename(root, layout); err != nil {
			return Result{}, err
		}
		b = &budget{limits: limits, progress: o.Progress}
		if w, err = unpackLayout(ctx, layout, root, o.Ref, b); err != nil {
			return Result{}, SpaceError(err)
		}
		if err := os.RemoveAll(layout); err != nil {
			return Result{}, errors.Join(err, w.dirs.close())
		}
		res.Kind = KindOCI
	} else if o.Ref != "" {
		return Result{}, errors.Join(fmt.Errorf("%w: image %q was asked for, but the archive is no OCI layout", ErrInvalid, o.Ref), w.dirs.close())
	}
	d, err := w.finish()
	if err = errors.Join(err, w.dirs.close()); err != nil {
		return Result{}, SpaceError(err)
	}
	b.report()
	res.Defaults, res.Dropped, res.Bytes, res.Files = d, w.dropped, b.bytes, b.files
	return res, nil
}

func unpackTar(ctx context.Context, root string, r io.Reader, b *budget) (*writer, error) {
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, root, b)
	if err != nil {
		return nil, err
	}
	if err := w.tar(r); err != nil {
		return nil, errors.Join(err, w.dirs.close())
	}
	return w, nil
}

func unpackLayout(ctx context.Context, layout, root, ref string, b *budget) (*writer, error) {
	img, err := openLayout(layout, ref)
	if err != nil {
		return nil, err
	}
	defer img.close()
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	w, err := newWriter(ctx, root, b)
	if err != nil {
		return nil, err
	}
	w.defaults = &tree.Defaults{User: img.config.Config.User, Cwd: img.config.Config.WorkingDir, Env: img.config.Config.Env}
	if err := w.defaults.Validate(); err != nil {
		return nil, errors.Join(err, w.dirs.close())
	}
	for _, l := range img.manifest.Layers {
		if err := img.layer(l, w.applyLayer); err != nil {
			return nil, errors.Join(fmt.Errorf("layer %s: %w", l.Digest, err), w.dirs.close())
		}
	}
	return w, nil
}
