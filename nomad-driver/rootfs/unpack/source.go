package unpack

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/tree"
)

// Source opens what a user names as the source of a template, as the archive that Into reads: a tar as it is, or a folder,
// which may be an OCI layout, packed on the way. The folder's special files are left out. The caller closes it.
func Source(ctx context.Context, path string) (io.ReadCloser, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case st.IsDir():
		return packed(ctx, path)
	case st.Mode().IsRegular(), st.Mode()&os.ModeNamedPipe != 0:
		return os.Open(path)
	}
	return nil, fmt.Errorf("%w: source %s is neither a file nor a folder", ErrInvalid, path)
}

// packed is the folder at path as a tar.
func packed(ctx context.Context, path string) (io.ReadCloser, error) {
	dir, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	p := &packing{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	// An image layout's own owners mean nothing, and may be ids that no template has.
	o := tree.PackOptions{SkipSpecial: true, RootOwned: isLayout(path)}
	go func() {
		defer close(p.done)
		defer dir.Close()
		w.CloseWithError(tree.Pack(ctx, dir, w, o))
	}()
	return p, nil
}

// packing is the reading end of a folder that is being packed.
type packing struct {
	*io.PipeReader
	cancel context.CancelFunc
	done   chan struct{}
}

// Close ends the packing and waits for it.
func (p *packing) Close() error {
	p.cancel()
	err := p.PipeReader.Close()
	<-p.done
	return err
}
