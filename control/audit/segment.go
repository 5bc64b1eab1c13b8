package audit

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// A segment is a file: a header, then records. See DESIGN.md.
const (
	segmentMagic   = "soulbox-audit"
	segmentVersion = 1
	segmentPrefix  = "segment-"
	segmentSuffix  = ".log"
	headsPrefix    = "heads-"
	headsSuffix    = ".jsonl"

	lengthBytes = 4
	hashBytes   = sha256.Size
	maxRecord   = lengthBytes + maxBody + hashBytes
	maxHeader   = 1024
)

// Hash is a link of the chain: SHA-256.
type Hash [hashBytes]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash is the inverse of String.
func ParseHash(s string) (Hash, error) {
	var h Hash
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("%.80q is not %d hexadecimal digits", s, 2*len(h))
	}
	copy(h[:], b)
	return h, nil
}

// What is hashed begins with a byte that says what it is, so that none passes for another.
const (
	hashedHeader byte = 'H'
	hashedEvent  byte = 'E'
)

// chain returns the hash of body that follows prev. scratch may be nil, and is returned to be used again.
func chain(scratch []byte, kind byte, prev Hash, body []byte) (Hash, []byte) {
	scratch = append(scratch[:0], kind)
	scratch = append(scratch, prev[:]...)
	scratch = append(scratch, body...)
	return sha256.Sum256(scratch), scratch
}

// LogID names one chain, so that no part of another fits into it.
type LogID [16]byte

func (id LogID) String() string { return hex.EncodeToString(id[:]) }

func newLogID() (id LogID) {
	_, _ = rand.Read(id[:]) // never fails on Linux
	return id
}

// header begins a segment.
type header struct {
	log     LogID
	first   uint64 // index of its first event
	prev    Hash   // of the last event before it; zero in the first segment
	created time.Time
	server  string // whose log it is, for people
}

// encode returns the header with the magic word, its version and its length (2 bytes, big endian) before it.
func (h header) encode() []byte {
	body := append([]byte(nil), h.log[:]...)
	body = binary.BigEndian.AppendUint64(body, h.first)
	body = append(body, h.prev[:]...)
	body = binary.BigEndian.AppendUint64(body, uint64(h.created.UnixNano()))
	body = append(body, h.server...)
	b := append([]byte(segmentMagic), segmentVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// hash is what the first record follows.
func (h header) hash() Hash {
	sum, _ := chain(nil, hashedHeader, h.prev, h.encode())
	return sum
}

func readHeader(r io.Reader) (h header, size int64, err error) {
	head := make([]byte, len(segmentMagic)+3)
	if _, err := io.ReadFull(r, head); err != nil {
		return h, 0, fmt.Errorf("header: %w", noEOF(err))
	}
	if string(head[:len(segmentMagic)]) != segmentMagic {
		return h, 0, errors.New("header: this is no segment of an audit log")
	}
	if v := head[len(segmentMagic)]; v != segmentVersion {
		return h, 0, fmt.Errorf("header: format version %d, this version of SoulBox reads %d", v, segmentVersion)
	}
	n := int(binary.BigEndian.Uint16(head[len(head)-2:]))
	if n < 64 || n > maxHeader {
		return h, 0, fmt.Errorf("header: %d bytes, 64 to %d are written", n, maxHeader)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return h, 0, fmt.Errorf("header: %w", noEOF(err))
	}
	copy(h.log[:], body)
	h.first = binary.BigEndian.Uint64(body[16:])
	copy(h.prev[:], body[24:])
	h.created = time.Unix(0, int64(binary.BigEndian.Uint64(body[56:]))).UTC()
	h.server = string(body[64:])
	return h, int64(len(head) + n), nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errShort
	}
	return err
}

// segmentName returns the name of the segment whose first event has that index.
func segmentName(first uint64) string {
	return fmt.Sprintf("%s%020d%s", segmentPrefix, first, segmentSuffix)
}

func headsName(first uint64) string { return fmt.Sprintf("%s%020d%s", headsPrefix, first, headsSuffix) }

// listSegments returns the first indexes of dir's segments, in order.
func listSegments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), segmentPrefix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(strings.TrimSuffix(name, segmentSuffix), 10, 64)
		if err != nil || segmentName(first) != e.Name() {
			continue
		}
		out = append(out, first)
	}
	slices.Sort(out)
	return out, nil
}

// createSegment makes a segment with its header, durably. A segment never exists without a whole header.
func createSegment(dir string, h header) (*os.File, int64, error) {
	path := filepath.Join(dir, segmentName(h.first))
	b := h.encode()
	if err := keys.WriteFile(path, b); err != nil {
		return nil, 0, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	return f, int64(len(b)), err
}

// record is one that was read.
type record struct {
	body   []byte // valid until the next one is read
	hash   Hash   // as stored
	offset int64  // where it begins
}

// scanner reads the records of a segment from one place on. It checks their frames, not their chain.
type scanner struct {
	r      *bufio.Reader
	offset int64
	buf    []byte
}

func newScanner(r io.ReaderAt, from, to int64) *scanner {
	return &scanner{r: bufio.NewReaderSize(io.NewSectionReader(r, from, to-from), 128<<10), offset: from}
}

// next returns io.EOF at the end, errShort where the last record is not whole.
func (s *scanner) next() (record, error) {
	rec := record{offset: s.offset}
	var head [lengthBytes]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return rec, io.EOF
		}
		return rec, noEOF(err)
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n < fieldsAt || n > maxBody {
		return rec, fmt.Errorf("its length is %d, %d to %d are written", uint32(n), fieldsAt, maxBody)
	}
	if cap(s.buf) < n+hashBytes {
		s.buf = make([]byte, n+hashBytes, max(2*n, 1024)+hashBytes)
	}
	b := s.buf[:n+hashBytes]
	if _, err := io.ReadFull(s.r, b); err != nil {
		return rec, noEOF(err)
	}
	rec.body = b[:n]
	copy(rec.hash[:], b[n:])
	s.offset += int64(lengthBytes + n + hashBytes)
	return rec, nil
}

// bodyIndex returns the index in an encoded event.
func bodyIndex(body []byte) uint64 { return binary.BigEndian.Uint64(body[indexAt:]) }

func bodyTime(body []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(body[timeAt:]))).UTC()
}
