package frame

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/shoenig/test/must"
)

func TestReadWrite(t *testing.T) {
	var b bytes.Buffer
	must.NoError(t, WriteJSON(&b, Resize, Size{Cols: 80, Rows: 24}))
	must.NoError(t, WriteOutput(&b, Stdout, 7, []byte("x\x00y")))
	must.NoError(t, WriteJSON(&b, Error, ErrorBody{Code: "c", Message: "m"}))
	r := NewReader(&b)
	var s Size
	must.NoError(t, r.ReadJSON(Resize, &s))
	must.Eq(t, Size{Cols: 80, Rows: 24}, s)
	f, err := r.Read()
	must.NoError(t, err)
	off, data, err := Output(f.Payload)
	must.NoError(t, err)
	must.Eq(t, 7, off)
	must.Eq(t, "x\x00y", string(data))
	var body *ErrorBody
	must.True(t, errors.As(r.ReadJSON(Response, &s), &body))
	must.Eq(t, "m", body.Message)
	_, err = r.Read()
	must.ErrorIs(t, err, io.EOF)
	must.ErrorIs(t, Write(io.Discard, Stdin, make([]byte, MaxPayload+1)), ErrTooLarge)
}

func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	_ = WriteOutput(&b, PTY, 1, []byte("abc"))
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 0, 17})
	f.Add([]byte{0, 0x10, 0, 1, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		var again bytes.Buffer
		for {
			fr, err := r.Read()
			if err != nil {
				if !bytes.HasPrefix(in, again.Bytes()) {
					t.Fatal("what was read is not what was written")
				}
				return
			}
			if len(fr.Payload) > MaxPayload {
				t.Fatalf("payload of %d bytes", len(fr.Payload))
			}
			_, _, _ = Output(fr.Payload)
			if err := Write(&again, fr.Type, fr.Payload); err != nil {
				t.Fatal(err)
			}
		}
	})
}
