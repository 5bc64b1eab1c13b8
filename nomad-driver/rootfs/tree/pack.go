package tree

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// PackOptions of Pack.
type PackOptions struct {
	Defaults *Defaults // written as the tar's first, global record
	// SkipSpecial leaves devices, FIFOs and sockets out instead of refusing them.
	SkipSpecial bool
	// RootOwned writes 0 for every owner and group.
	RootOwned bool
}

// Pack writes the tree below dir as a tar whose bytes depend on the tree and o alone: entries sorted by path, numeric owners,
// whole seconds, later names of a file as hard links, extended attributes as PAX records.
func Pack(ctx context.Context, dir *os.File, w io.Writer, o PackOptions) error {
	entries, err := Walk(ctx, dir, o.SkipSpecial)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	if o.Defaults != nil {
		if err := writeDefaults(tw, *o.Defaults); err != nil {
			return err
		}
	}
	p := packer{ctx: ctx, root: dir, tw: tw, buf: make([]byte, 256<<10), rootOwned: o.RootOwned}
	for i := range entries {
		if err := p.entry(&entries[i]); err != nil {
			return fmt.Errorf("pack %.200q: %w", entries[i].Path, err)
		}
	}
	return tw.Close()
}

func writeDefaults(tw *tar.Writer, d Defaults) error {
	j, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return tw.WriteHeader(&tar.Header{
		Typeflag:   tar.TypeXGlobalHeader,
		Name:       "pax_global_header",
		PAXRecords: map[string]string{DefaultsRecord: string(j)},
	})
}

type packer struct {
	ctx       context.Context
	root      *os.File
	tw        *tar.Writer
	buf       []byte
	rootOwned bool
}

func (p *packer) entry(e *Entry) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	h := &tar.Header{Name: "./" + e.Path, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.MTime, Format: tar.FormatPAX}
	if p.rootOwned {
		h.Uid, h.Gid = 0, 0
	}
	switch e.Type {
	case TypeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
		return p.tw.WriteHeader(h)
	case TypeLink:
		h.Typeflag, h.Linkname = tar.TypeLink, "./"+e.Target
		return p.tw.WriteHeader(h)
	case TypeDir:
		h.Typeflag = tar.TypeDir
		if e.Path != "" {
			h.Name += "/"
		}
	case TypeFile:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	}
	f, err := Open(p.root, e.Path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	xattrs, err := readXattrs(f)
	if err != nil {
		return err
	}
	for _, x := range xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[XattrRecord+x.Name] = x.Value
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	if e.Type != TypeFile {
		return nil
	}
	n, err := io.CopyBuffer(p.tw, onlyReader{f}, p.buf)
	if err != nil {
		return err
	}
	if n != e.Size {
		return fmt.Errorf("its size changed from %d to %d bytes", e.Size, n)
	}
	return nil
}
