package node

import (
	"context"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// The fake guest is one of before these operations: it does not know them.

func unknownOp(op guest.Op) error {
	return &frame.ErrorBody{Code: guest.CodeBadRequest, Message: "unknown operation \"" + string(op) + "\""}
}

func (g *fakeGuest) Entry(context.Context, guest.FileRequest) (guest.Entry, error) {
	return guest.Entry{}, unknownOp(guest.OpEntry)
}

func (g *fakeGuest) Walk(context.Context, guest.FileRequest) ([]guest.Entry, error) {
	return nil, unknownOp(guest.OpWalk)
}

func (g *fakeGuest) ReadSmall(context.Context, guest.FileRequest) ([]byte, error) {
	return nil, unknownOp(guest.OpRead)
}

func (g *fakeGuest) Watch(context.Context, guest.WatchRequest) (*guest.Watch, error) {
	return nil, unknownOp(guest.OpWatch)
}
