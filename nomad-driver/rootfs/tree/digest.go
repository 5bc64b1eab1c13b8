package tree

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
)

// ListingVersion is the first line of a listing. A change of the listing's form changes it, and with it every digest.
const ListingVersion = "soulbox-template 1"

// Summary is what Digest finds.
type Summary struct {
	Digest string // sha256:<hex>
	Bytes  int64  // of all regular files
	Files  int64  // entries of all types, without the root
}

// Digest reads the whole tree below dir and returns the digest of its canonical listing and of d. Times are no part of it.
func Digest(ctx context.Context, dir *os.File, d Defaults) (Summary, error) {
	entries, err := Walk(ctx, dir, false)
	if err != nil {
		return Summary{}, err
	}
	bufs := sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}
	err = each(ctx, dir, entries, func(e *Entry, f *os.File) error {
		x, err := readXattrs(f)
		if err != nil {
			return err
		}
		e.Xattrs = x
		if e.Type != TypeFile || e.Size == 0 {
			e.SHA256 = sha256.Sum256(nil)
			return nil
		}
		b := bufs.Get().(*[]byte) //nolint:forcetypeassert // the pool holds nothing else
		defer bufs.Put(b)
		return hashFile(e, f, *b)
	})
	if err != nil {
		return Summary{}, err
	}
	h := sha256.New()
	w := bufio.NewWriterSize(h, 64<<10)
	s := Summary{Files: int64(len(entries)) - 1}
	if err := writeListing(w, entries, d); err != nil {
		return Summary{}, err
	}
	for i := range entries {
		s.Bytes += entries[i].Size
	}
	if err := w.Flush(); err != nil {
		return Summary{}, err
	}
	s.Digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return s, nil
}

func hashFile(e *Entry, f *os.File, buf []byte) error {
	h := sha256.New()
	n, err := io.CopyBuffer(h, onlyReader{f}, buf)
	if err != nil {
		return fmt.Errorf("read %.200q: %w", e.Path, err)
	}
	if n != e.Size {
		return fmt.Errorf("read %.200q: its size changed from %d to %d bytes", e.Path, e.Size, n)
	}
	h.Sum(e.SHA256[:0])
	return nil
}

// onlyReader hides *os.File's WriteTo, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ r io.Reader }

func (o onlyReader) Read(p []byte) (int, error) { return o.r.Read(p) }

// writeListing writes the listing: the version, the defaults as JSON, then a line for each entry, in order:
//
//	type mode uid gid size content-hash "path" ["target"] [name=hex]...
//
// The mode is octal, numbers are decimal; what a type has not is "-". Strings are Go's ASCII quoting, which is injective on
// bytes and does not change with Unicode's tables.
func writeListing(w *bufio.Writer, entries []Entry, d Defaults) error {
	dj, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%s\n%s\n", ListingVersion, dj); err != nil {
		return err
	}
	var line []byte
	for i := range entries {
		line = entries[i].appendLine(line[:0])
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

func (e *Entry) appendLine(b []byte) []byte {
	b = append(b, byte(e.Type), ' ')
	b = strconv.AppendUint(b, uint64(e.Mode), 8)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(e.UID), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(e.GID), 10)
	if e.Type == TypeFile {
		b = append(b, ' ')
		b = strconv.AppendInt(b, e.Size, 10)
		b = append(b, ' ')
		b = hex.AppendEncode(b, e.SHA256[:])
	} else {
		b = append(b, " - -"...)
	}
	b = append(b, ' ')
	b = strconv.AppendQuoteToASCII(b, e.Path)
	if e.Type == TypeSymlink || e.Type == TypeLink {
		b = append(b, ' ')
		b = strconv.AppendQuoteToASCII(b, e.Target)
	}
	for _, x := range e.Xattrs {
		b = append(b, ' ')
		b = strconv.AppendQuoteToASCII(b, x.Name)
		b = append(b, '=')
		b = hex.AppendEncode(b, []byte(x.Value))
	}
	return append(b, '\n')
}
