// Package transfer moves folders between this machine's disk and tar streams, and shows how far a transfer is.
//
// It owns the rules for what comes out of a sandbox onto a person's disk: everything stays below the folder that the person
// named, nothing in it points elsewhere, and nothing in it has special rights. It never speaks to the service.
package transfer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Report counts what a transfer moved and names what it left out on purpose.
type Report struct {
	Files   int   // regular files
	Dirs    int   // directories
	Links   int   // symbolic and hard links
	Bytes   int64 // of the regular files
	Skipped []Skip
}

// Skip is an entry that was left out.
type Skip struct {
	Path   string
	Reason string
}

// Pack writes the folder at dir to w as a tar with names relative to it, the folder itself as "./". Owners are not written;
// modes, times and symbolic links are. What is neither file, folder nor link is skipped.
func Pack(ctx context.Context, dir string, w io.Writer) (Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Report{}, err
	}
	defer root.Close()
	p := packer{root: root, tw: tar.NewWriter(w)}
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = p.entry(name)
		}
		return err
	})
	if err == nil {
		err = p.tw.Close()
	}
	if err != nil {
		err = fmt.Errorf("pack %s: %w", dir, err)
	}
	return p.report, err
}

type packer struct {
	root   *os.Root
	tw     *tar.Writer
	report Report
}

func (p *packer) entry(name string) error {
	st, err := p.root.Lstat(name)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: "./" + name, Mode: int64(st.Mode().Perm()), ModTime: st.ModTime(), Format: tar.FormatPAX}
	if name == "." {
		h.Name = "."
	}
	switch {
	case st.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name += "/"
		p.report.Dirs++
	case st.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = p.root.Readlink(name); err != nil {
			return err
		}
		p.report.Links++
	case st.Mode().IsRegular():
		return p.file(name, h)
	default:
		p.report.Skipped = append(p.report.Skipped, Skip{path.Clean(name), "is neither a file, a folder nor a link"})
		return nil
	}
	return p.tw.WriteHeader(h)
}

func (p *packer) file(name string, h *tar.Header) error {
	// Without O_NONBLOCK an entry that was swapped for a FIFO would wait for a writer for ever.
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s: changed while it was read", name)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(p.tw, f, h.Size); err != nil {
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: became shorter while it was read", name)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	p.report.Files++
	p.report.Bytes += h.Size
	return nil
}

// Stream is Pack as a reader. Report and Err are for after Close.
type Stream struct {
	*io.PipeReader
	Report Report
	Err    error // why the packing ended before its end

	cancel context.CancelFunc
	done   chan struct{}
}

// Packed starts to pack dir. The caller closes the stream.
func Packed(ctx context.Context, dir string) *Stream {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	s := &Stream{PipeReader: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.Report, s.Err = Pack(ctx, dir, w)
		w.CloseWithError(s.Err)
	}()
	return s
}

// Close ends the packing and waits for it.
func (s *Stream) Close() error {
	s.cancel()
	err := s.PipeReader.Close()
	<-s.done
	return err
}
