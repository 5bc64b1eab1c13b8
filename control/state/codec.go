package state

import (
	"bytes"
	"fmt"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// commandVersion is the version of every command's encoding that this code writes. Readers accept every released one.
const commandVersion = 1

// handle is the one msgpack encoding of the package. Canonical sorts map keys: equal values have equal bytes.
var handle = newHandle()

func newHandle() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.Canonical, h.MaxDepth, h.MaxInitLen = true, 32, 4096
	return h
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	if err := codec.NewEncoder(&b, handle).Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return b.Bytes(), nil
}

func decode(b []byte, v any) error {
	if err := codec.NewDecoderBytes(b, handle).Decode(v); err != nil {
		return fmt.Errorf("decode %T: %w", v, err)
	}
	return nil
}

// encodeCommand returns the log entry of a command: type, version, msgpack.
func encodeCommand(c Command) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	body, err := encode(c)
	if err != nil {
		return nil, err
	}
	if len(body) > MaxCommandBytes {
		return nil, limitErrorf("request", "needs %d bytes of state, at most %d are kept", len(body), MaxCommandBytes)
	}
	return append([]byte{byte(c.kind()), commandVersion}, body...), nil
}

// decodeCommand is the inverse of encodeCommand. Its errors mean that this server cannot follow the log.
func decodeCommand(entry []byte) (Command, error) {
	if len(entry) < 2 {
		return nil, fmt.Errorf("log entry of %d bytes has no command header", len(entry))
	}
	t, version := commandType(entry[0]), entry[1]
	makeCommand, ok := commands[t]
	if !ok {
		return nil, fmt.Errorf("command type %d is unknown to this version", t)
	}
	if version != commandVersion {
		return nil, fmt.Errorf("command type %d has encoding version %d, this version reads %d", t, version, commandVersion)
	}
	c := makeCommand()
	if err := decode(entry[2:], c); err != nil {
		return nil, err
	}
	return c, nil
}
