package filesystem

import (
	"context"
	"fmt"
	"io"
	"path"

	"connectrpc.com/connect"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/place"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/filesystem"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

func (s *service) Stat(ctx context.Context, r *connect.Request[wire.StatRequest]) (*connect.Response[wire.StatResponse], error) {
	u, p, err := request(ctx, r.Header(), r.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	e, err := entryOf(ctx, u, p)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.StatResponse{Entry: e}), nil
}

func (s *service) ListDir(ctx context.Context, r *connect.Request[wire.ListDirRequest]) (*connect.Response[wire.ListDirResponse], error) {
	u, p, err := request(ctx, r.Header(), r.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	req := u.Request(p)
	req.Depth = int(min(max(r.Msg.GetDepth(), 1), guest.MaxDepth))
	list, err := u.Sandbox.Guest.Walk(ctx, req)
	if err != nil {
		return nil, failure(u.Sandbox, p, err)
	}
	entries := make([]*wire.EntryInfo, len(list))
	for i := range list {
		entries[i] = info(&list[i])
	}
	return connect.NewResponse(&wire.ListDirResponse{Entries: entries}), nil
}

func (s *service) MakeDir(ctx context.Context, r *connect.Request[wire.MakeDirRequest]) (*connect.Response[wire.MakeDirResponse], error) {
	u, p, err := request(ctx, r.Header(), r.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	switch old, err := u.Sandbox.Guest.Entry(ctx, u.Request(p)); {
	case err == nil && old.Type == "directory":
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("directory already exists: %s", p))
	case err == nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("path already exists but it is not a directory: %s", p))
	case !place.Is(err, guest.CodeNotFound):
		return nil, failure(u.Sandbox, p, err)
	}
	req := u.Request(p)
	req.Parents, req.Claim = true, place.Claims(p)
	if _, err := u.Sandbox.Guest.Mkdir(ctx, req); err != nil {
		return nil, failure(u.Sandbox, p, err)
	}
	e, err := entryOf(ctx, u, p)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.MakeDirResponse{Entry: e}), nil
}

func (s *service) Remove(ctx context.Context, r *connect.Request[wire.RemoveRequest]) (*connect.Response[wire.RemoveResponse], error) {
	u, p, err := request(ctx, r.Header(), r.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	req := u.Request(p)
	req.Claim = claimsOwn(u, p)
	if err := u.Sandbox.Guest.Remove(ctx, req); err != nil && !place.Is(err, notDirCode) { // nothing can be below a file
		return nil, failure(u.Sandbox, p, err)
	}
	return connect.NewResponse(&wire.RemoveResponse{}), nil
}

// claimsOwn reports whether a user's own file or directory may be taken away from a directory that is not theirs: what they were let make
// in / they can also remove. Their home stays.
func claimsOwn(u place.User, p string) bool { return place.Claims(p) && p != path.Clean(u.Info.Home) }

func (s *service) Move(ctx context.Context, r *connect.Request[wire.MoveRequest]) (*connect.Response[wire.MoveResponse], error) {
	u, from, err := request(ctx, r.Header(), r.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	to, err := u.Path(r.Msg.GetDestination())
	if err != nil {
		return nil, failure(u.Sandbox, r.Msg.GetDestination(), err)
	}
	if _, err := entryOf(ctx, u, from); err != nil {
		return nil, err
	}
	req := u.Request(from)
	req.Target, req.Parents, req.Claim, req.ClaimPath = to, true, place.Claims(to), claimsOwn(u, from)
	err = u.Sandbox.Guest.Rename(ctx, req)
	if place.Is(err, guest.CodeCrossDevice) {
		err = move(ctx, u, from, to)
	}
	if err != nil {
		return nil, failure(u.Sandbox, from, err)
	}
	e, err := entryOf(ctx, u, to)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&wire.MoveResponse{Entry: e}), nil
}

// move copies and removes, where the kernel cannot rename: between two file systems, and for a directory of the template,
// which is on another layer. The sandbox's own mv(1) does it, as the user.
func move(ctx context.Context, u place.User, from, to string) error {
	st, err := u.Sandbox.Guest.StartAttached(ctx, guest.Start{
		Argv: []string{"mv", "-f", "-T", "--", from, to}, Cwd: "/", User: u.Spec, KillOnDetach: true,
	})
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Close() })
	defer func() {
		if stop() {
			_ = st.Close()
		}
	}()
	said := &head{left: 1024}
	exit, _, err := st.Output(io.Discard, said)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return &frame.ErrorBody{Code: guest.CodeInternal, Message: fmt.Sprintf("move %q to another file system: %s", from, said.b)}
	}
	return nil
}

// head keeps the beginning of what is written to it.
type head struct {
	b    []byte
	left int
}

func (h *head) Write(p []byte) (int, error) {
	k := min(len(p), h.left)
	h.b, h.left = append(h.b, p[:k]...), h.left-k
	return len(p), nil
}
