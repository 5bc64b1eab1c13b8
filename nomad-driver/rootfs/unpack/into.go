package unpack

import (
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

func into(ctx context.Context, dir string, r io.Reader, o Options) (Result, error) {
	panic("unfinished")
}
