package api

import (
	"bytes"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
)

// BenchmarkCreate is a create and a delete through the API, the Raft log and the local node.
func BenchmarkCreate(b *testing.B) {
	s := newStack(b)
	for b.Loop() {
		sb, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
		must.NoError(b, err)
		b.StopTimer()
		must.NoError(b, s.client.DeleteSandbox(b.Context(), sb.ID))
		b.StartTimer()
	}
}

// BenchmarkExec is a process that does nothing, from the client's call to its exit code.
func BenchmarkExec(b *testing.B) {
	s := newStack(b)
	sb, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
	must.NoError(b, err)
	for b.Loop() {
		exit, err := s.client.Run(b.Context(), sb.ID, api.ExecRequest{Argv: []string{"/bin/true"}}, nil, nil, nil)
		must.NoError(b, err)
		must.Eq(b, 0, exit.Code)
	}
}

// BenchmarkEcho is a round trip of a few bytes to a process and back.
func BenchmarkEcho(b *testing.B) {
	s := newStack(b)
	sb, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
	must.NoError(b, err)
	st, err := s.client.Exec(b.Context(), sb.ID, api.ExecRequest{Argv: []string{"/bin/cat"}, Stdin: true})
	must.NoError(b, err)
	defer st.Close()
	for b.Loop() {
		_, err := st.Write([]byte("ping\n"))
		must.NoError(b, err)
		_, err = st.Recv()
		must.NoError(b, err)
	}
}

// BenchmarkUpload and BenchmarkDownload move a file of 64 MiB.
func BenchmarkUpload(b *testing.B) {
	s := newStack(b)
	sb, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
	must.NoError(b, err)
	data := make([]byte, 64<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		err := s.client.WriteFile(b.Context(), sb.ID, "/var/file", bytes.NewReader(data), api.FileOptions{User: "root"})
		must.NoError(b, err)
	}
}

func BenchmarkDownload(b *testing.B) {
	s := newStack(b)
	sb, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
	must.NoError(b, err)
	const size = 64 << 20
	err = s.client.WriteFile(b.Context(), sb.ID, "/var/file", bytes.NewReader(make([]byte, size)), api.FileOptions{User: "root"})
	must.NoError(b, err)
	b.SetBytes(size)
	sink := make([]byte, 256<<10)
	for b.Loop() {
		body, _, err := s.client.ReadFile(b.Context(), sb.ID, "/var/file", api.FileOptions{})
		must.NoError(b, err)
		n := 0
		for {
			k, err := body.Read(sink)
			n += k
			if err != nil {
				break
			}
		}
		must.Eq(b, size, n)
		must.NoError(b, body.Close())
	}
}
