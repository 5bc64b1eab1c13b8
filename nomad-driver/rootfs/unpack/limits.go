package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// With returns l with the fields that are set in other replaced.
func (l Limits) With(other Limits) Limits {
	for _, f := range []struct{ to, from *int64 }{
		{&l.Bytes, &other.Bytes}, {&l.FileBytes, &other.FileBytes}, {&l.Files, &other.Files}, {&l.Ratio, &other.Ratio},
	} {
		if *f.from > 0 {
			*f.to = *f.from
		}
	}
	if other.Depth > 0 {
		l.Depth = other.Depth
	}
	if other.PathBytes > 0 {
		l.PathBytes = other.PathBytes
	}
	return l
}

// SpaceError makes err an ErrNoSpace error where the file system is full.
func SpaceError(err error) error {
	if errors.Is(err, ErrNoSpace) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// budget counts what an archive costs and ends it at the first limit.
type budget struct {
	limits   Limits
	read     int64 // bytes of the archive, before decompression
	bytes    int64
	files    int64
	reported int64
	progress func(Progress)
}

// entry counts one entry of the archive.
func (b *budget) entry(path string) error {
	b.files++
	if b.files > b.limits.Files {
		return &LimitError{"files", b.limits.Files, path}
	}
	if b.files%2048 == 0 {
		b.report()
	}
	return nil
}

// write counts n bytes of path, of which total are written with them.
func (b *budget) write(path string, n, total int64) error {
	b.bytes += n
	switch {
	case total > b.limits.FileBytes:
		return &LimitError{"file_bytes", b.limits.FileBytes, path}
	case b.bytes > b.limits.Bytes:
		return &LimitError{"bytes", b.limits.Bytes, path}
	}
	if err := b.ratio(path, b.bytes); err != nil {
		return err
	}
	if b.bytes-b.reported > 16<<20 {
		b.report()
	}
	return nil
}

// ratio compares what came out of the archive with what was read of it.
func (b *budget) ratio(path string, out int64) error {
	if out > RatioGrace && out/b.limits.Ratio > b.read {
		return &LimitError{"ratio", b.limits.Ratio, path}
	}
	return nil
}

func (b *budget) report() {
	b.reported = b.bytes
	if b.progress != nil {
		b.progress(Progress{Read: b.read, Bytes: b.bytes, Files: b.files})
	}
}

// source reads the archive, counts its bytes and ends with the context.
type source struct {
	ctx context.Context
	r   io.Reader
	b   *budget
}

func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	s.b.read += int64(n)
	return n, err
}

// zeroBlock is what marks the end of a tar.
var zeroBlock [512]byte

// inflated counts what decompression gives, headers and padding included: an archive of nothing but headers or trailing
// zeros is a bomb as well.
type inflated struct {
	r     io.Reader
	b     *budget
	out   int64
	zeros bool // the last tar block was all zero
	ended bool // the stream is at its end
}

func (i *inflated) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	i.out += int64(n)
	if n > 0 {
		i.zeros = n == len(zeroBlock) && bytes.Equal(p[:n], zeroBlock[:])
	}
	i.ended = n == 0 && errors.Is(err, io.EOF)
	if rerr := i.b.ratio("the archive's stream", i.out); rerr != nil {
		return 0, rerr
	}
	return n, err
}
