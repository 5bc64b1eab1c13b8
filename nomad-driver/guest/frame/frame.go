// Package frame is the one framing of SoulBox streams: guest connections, exec over the node's API and exec over the
// public API all carry it, so that every hop can splice bytes instead of translating them.
//
// It owns the encoding and its limits. It never interprets a payload. It imports the standard library only.
//
// A frame is a 5-byte header, big endian, and its payload:
//
//	uint32 length of the payload in bytes | uint8 type | payload
package frame

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxPayload is the largest payload, in bytes, that a reader accepts. Data frames are at most MaxData.
const (
	MaxPayload = 1 << 20
	MaxData    = 32 << 10

	headerLen = 5
)

// Type says what a frame's payload is.
type Type uint8

// The frame types. Request and Response carry JSON and open a conversation; what follows depends on the request.
const (
	Request  Type = 1 // client → server: JSON, the first frame of every conversation
	Response Type = 2 // server → client: JSON, the answer to Request

	Stdin      Type = 16 // client → server: bytes for the process's stdin or terminal
	StdinClose Type = 17 // client → server: empty; closes stdin
	Resize     Type = 18 // client → server: JSON Size
	Signal     Type = 19 // client → server: JSON SignalBody

	Stdout  Type = 32 // server → client: uint64 offset of the first byte, then bytes
	Stderr  Type = 33 // server → client: as Stdout
	PTY     Type = 34 // server → client: as Stdout, terminal output
	Exit    Type = 35 // server → client: JSON ExitBody; the last frame of an attachment
	Dropped Type = 36 // server → client: JSON DroppedBody; output that left the ring before it was read
	Error   Type = 37 // server → client: JSON ErrorBody; ends the conversation
	Events  Type = 38 // server → client: JSON guest.WatchEvents; what a watch has seen
)

// Frame is one frame. Payload is valid until the next Read of the reader it came from.
type Frame struct {
	Type    Type
	Payload []byte
}

// ErrTooLarge is returned for a header that announces more than MaxPayload bytes.
var ErrTooLarge = errors.New("frame: payload exceeds 1 MiB")

// Size is a terminal's size in character cells.
type Size struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// SignalBody asks for a signal to the attached process. Number is the Linux signal number.
type SignalBody struct {
	Number int `json:"number"`
}

// ExitBody tells how a process ended. Exactly one of Code and Signal counts: Signal is 0 for a normal exit.
type ExitBody struct {
	Code   int  `json:"code"`   // exit code; 128+Signal where Signal is set
	Signal int  `json:"signal"` // number of the signal that ended it, or 0
	OOM    bool `json:"oom,omitempty"`
}

// DroppedBody marks a gap in a stream: Bytes bytes before Offset are gone.
type DroppedBody struct {
	Stream Type   `json:"stream"` // Stdout, Stderr or PTY
	Bytes  uint64 `json:"bytes"`
	Offset uint64 `json:"offset"`
}

// ErrorBody is an error that crosses the stream. Code is a snake_case word.
type ErrorBody struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *ErrorBody) Error() string { return e.Message }

// Reader reads frames from a stream. Not safe for concurrent use.
type Reader struct {
	r   io.Reader
	hdr [headerLen]byte
	buf []byte
}

// NewReader returns a Reader on r. Give it a buffered reader where r is a socket and many small frames are expected.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Read returns the next frame. io.EOF means that the peer closed between two frames.
func (r *Reader) Read() (Frame, error) {
	if _, err := io.ReadFull(r.r, r.hdr[:]); err != nil {
		return Frame{}, err
	}
	n := binary.BigEndian.Uint32(r.hdr[:4])
	if n > MaxPayload {
		return Frame{}, ErrTooLarge
	}
	if uint32(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	r.buf = r.buf[:n]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return Frame{Type: Type(r.hdr[4]), Payload: r.buf}, nil
}

// ReadJSON reads one frame, which must be of type want, into v. An Error frame comes back as *ErrorBody.
func (r *Reader) ReadJSON(want Type, v any) error {
	f, err := r.Read()
	if err != nil {
		return err
	}
	if f.Type == Error && want != Error {
		var body ErrorBody
		if err := json.Unmarshal(f.Payload, &body); err != nil {
			return fmt.Errorf("frame: decode error frame: %w", err)
		}
		return &body
	}
	if f.Type != want {
		return fmt.Errorf("frame: got type %d, want %d", f.Type, want)
	}
	if err := json.Unmarshal(f.Payload, v); err != nil {
		return fmt.Errorf("frame: decode type %d: %w", want, err)
	}
	return nil
}

// Write writes one frame with a single Write call, so that concurrent writers need only serialise their calls.
func Write(w io.Writer, t Type, payload ...[]byte) error {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	if n > MaxPayload {
		return ErrTooLarge
	}
	b := make([]byte, headerLen, headerLen+n)
	binary.BigEndian.PutUint32(b, uint32(n))
	b[4] = byte(t)
	for _, p := range payload {
		b = append(b, p...)
	}
	_, err := w.Write(b)
	return err
}

// WriteJSON writes v as a JSON frame of type t.
func WriteJSON(w io.Writer, t Type, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("frame: encode type %d: %w", t, err)
	}
	return Write(w, t, b)
}

// Output splits the payload of a Stdout, Stderr or PTY frame into the offset of its first byte and the bytes.
func Output(payload []byte) (offset uint64, data []byte, err error) {
	if len(payload) < 8 {
		return 0, nil, errors.New("frame: output frame shorter than its offset")
	}
	return binary.BigEndian.Uint64(payload), payload[8:], nil
}

// WriteOutput writes an output frame. data must be at most MaxData bytes.
func WriteOutput(w io.Writer, t Type, offset uint64, data []byte) error {
	var off [8]byte
	binary.BigEndian.PutUint64(off[:], offset)
	return Write(w, t, off[:], data)
}
