package guest

import (
	"encoding/json"
	"fmt"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// maxSignal is the largest signal number of Linux.
const maxSignal = 64

// ExitOf decodes and checks an Exit frame.
func ExitOf(f frame.Frame) (frame.ExitBody, error) {
	e, err := decode[frame.ExitBody](f)
	if err != nil {
		return frame.ExitBody{}, err
	}
	if e.Code < 0 || e.Code > 255 || e.Signal < 0 || e.Signal > maxSignal {
		return frame.ExitBody{}, fmt.Errorf("%w: exit code %d, signal %d", ErrBadAnswer, e.Code, e.Signal)
	}
	return e, nil
}

func decode[T any](f frame.Frame) (T, error) {
	var v T
	if err := json.Unmarshal(f.Payload, &v); err != nil {
		return v, fmt.Errorf("%w: frame type %d: %w", ErrBadAnswer, f.Type, err)
	}
	return v, nil
}
