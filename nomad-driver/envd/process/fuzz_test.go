package process

import (
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/soulbox-dev/soulbox/nomad-driver/envd/scope"
	wire "github.com/soulbox-dev/soulbox/nomad-driver/envd/wire/process"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Whatever a client's JSON is, it is refused or becomes a start that PID 1 takes.
func FuzzStart(f *testing.F) {
	for _, s := range []string{
		`{"process":{"cmd":"/bin/bash","args":["-l","-c","true"],"envs":{"A":"b"},"cwd":"/"},"stdin":false,"tag":"t"}`,
		`{"process":{"cmd":"a"},"pty":{"size":{"cols":80,"rows":24}}}`, `{"process":{"cmd":"\u0000"}}`, `{"process":{"cmd":"a","envs":{"":""}}}`,
		`{"process":{"cmd":"a"},"process":{"cmd":"b"}}`, `{"process":null,"unknown":[[[[]]]]}`, `{"pty":{"size":{"cols":4294967295}}}`,
	} {
		f.Add(s, "Basic dXNlcjo=")
	}
	f.Add(`{}`, "Basic !")
	f.Fuzz(func(t *testing.T, body, auth string) {
		req := connect.NewRequest(&wire.StartRequest{})
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(body), req.Msg) != nil {
			return
		}
		req.Header().Set("Authorization", auth)
		st, err := startOf(scope.Sandbox{ID: "iaaaaaaaaaaaaaaaaaaaa", Template: "t"}, req)
		if err != nil {
			return
		}
		if st.Argv[0] == "" || len(st.Argv) > guest.MaxArgs || len(st.Tag) > guest.MaxTag || st.TTY && (st.Size == nil || st.Size.Cols == 0) {
			t.Fatalf("%+v", st)
		}
		for _, s := range append(append([]string{st.Cwd, st.User}, st.Argv...), st.Env...) {
			if strings.IndexByte(s, 0) >= 0 {
				t.Fatalf("a NUL byte in %q", s)
			}
		}
	})
}
