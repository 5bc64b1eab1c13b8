package unpack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow is the most memory that a zstd frame may ask for: what `zstd --long=27` writes.
const maxWindow = 128 << 20

var foreign = []struct {
	magic []byte
	name  string
}{
	{[]byte("\xfd7zXZ\x00"), "xz"},
	{[]byte("BZh"), "bzip2"},
	{[]byte("PK\x03\x04"), "zip"},
	{[]byte("7z\xbc\xaf\x27\x1c"), "7z"},
	{[]byte("hsqs"), "squashfs"},
}

// decompress returns the tar in r, which may be compressed, and a function that releases the decompressor.
func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case len(head) == 0:
		return nil, nil, fmt.Errorf("%w: the archive is empty", ErrInvalid)
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: gzip: %w", ErrInvalid, err)
		}
		return zr, func() { zr.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("%w: zstd: %w", ErrInvalid, err)
		}
		return zr, zr.Close, nil
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, f.magic) {
			return nil, nil, fmt.Errorf("%w: the archive is %s; a template is a tar, plain or compressed with gzip or zstd", ErrInvalid, f.name)
		}
	}
	return br, func() {}, nil
}
