// Package place says where in a sandbox a request to envd points and as whom: the rules of paths and user names that all
// file operations share.
//
// It owns these rules and how the sandbox's own failures read to clients. It never opens or changes a file, and its paths
// are text: whether a user may go there is for PID 1 to find out, which resolves them inside as that user.
package place

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// MaxPath is the longest path, in bytes: the kernel's limit without the NUL.
const MaxPath = 4095

// UserError says that the sandbox has no such user.
type UserError struct{ Name string }

func (e *UserError) Error() string { return fmt.Sprintf("invalid username: '%.256s'", e.Name) }

// PathError says what is wrong with a path that a client named.
type PathError struct{ Reason string }

func (e *PathError) Error() string { return e.Reason }

// User is a user of the sandbox for one request.
type User struct {
	Sandbox scope.Sandbox
	Spec    string // as the guest is told
	Info    guest.UserInfo
}

// As looks a user up; empty is the sandbox's default user. An unknown one is a *UserError.
func As(ctx context.Context, s scope.Sandbox, name string) (User, error) {
	spec := name
	if spec == "" {
		spec = s.User
	} else if strings.ContainsAny(name, ":\x00") || !utf8.ValidString(name) {
		return User{}, &UserError{Name: strings.ToValidUTF8(name, "\ufffd")}
	}
	info, err := s.Guest.LookupUser(ctx, spec)
	if Is(err, guest.CodeUnknownUser) || Is(err, guest.CodeBadRequest) {
		return User{}, &UserError{Name: name}
	}
	if err != nil {
		return User{}, err
	}
	return User{Sandbox: s, Spec: spec, Info: info}, nil
}

// Path makes a client's path absolute: empty is the default working directory, ~ and what is relative belong to the user's
// home. It is cleaned as text, ".." included, as the contract's own daemon does; where it leads then is for the kernel to say.
func (u User) Path(p string) (string, error) {
	if p == "" {
		p = u.Sandbox.Cwd
	}
	switch {
	case p == "" || p == "~":
		p = u.Info.Home
	case strings.HasPrefix(p, "~/"):
		p = join(u.Info.Home, p[2:])
	case p[0] != '/':
		p = join(u.Info.Home, p)
	}
	switch {
	case strings.IndexByte(p, 0) >= 0:
		return "", &PathError{"path has a NUL byte"}
	case !utf8.ValidString(p):
		return "", &PathError{"path is not UTF-8"}
	case len(p) > MaxPath:
		return "", &PathError{fmt.Sprintf("path is longer than %d bytes", MaxPath)}
	}
	return path.Clean(p), nil
}

func join(dir, rest string) string { return strings.TrimSuffix(dir, "/") + "/" + rest }

// Request names a path of Path's as the user for the guest.
func (u User) Request(path string) guest.FileRequest {
	return guest.FileRequest{Path: path, User: u.Spec}
}

// Claims reports whether root makes new files and directories of a path for a user whose own rights do not suffice: the contract's
// clients expect that /app/main.py can be uploaded. The folders of the system are left to who says that they are root.
func Claims(path string) bool {
	if path == "/" {
		return false
	}
	top, _, _ := strings.Cut(path[1:], "/")
	switch top {
	case "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin", "sys", "usr", "var", ".soulbox":
		return false
	}
	return true
}

// Is reports whether the guest failed with one of the guest.Code* words.
func Is(err error, code string) bool {
	var body *frame.ErrorBody
	return errors.As(err, &body) && body.Code == code
}

// Reported reports whether an error is the guest's own answer; every other one says that the guest was not reached, or
// broke off.
func Reported(err error) bool {
	var body *frame.ErrorBody
	return errors.As(err, &body)
}

// TooOld reports whether the sandbox's PID 1 is of before the operation that it was asked for.
func TooOld(err error) bool {
	var body *frame.ErrorBody
	return errors.As(err, &body) && body.Code == guest.CodeBadRequest && strings.HasPrefix(body.Message, "unknown operation")
}

// Ended reports whether the sandbox has ended.
func Ended(s scope.Sandbox) bool {
	select {
	case <-s.Ended:
		return true
	default:
		return false
	}
}

// Cause is what came between a request and its sandbox, without the path of the socket: folders of the machine are nobody's business.
func Cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// The texts of what clients know by its words.
func Missing(path string) string { return fmt.Sprintf("path '%s' does not exist", path) }

// IsDirectory is said where a file is needed.
func IsDirectory(path string) string { return fmt.Sprintf("path '%s' is a directory", path) }

// NotDirectory is said where a directory is needed.
func NotDirectory(path string) string { return fmt.Sprintf("path '%s' is not a directory", path) }
