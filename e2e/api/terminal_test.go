package api

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
)

// see reads until the terminal has shown want, and returns the offset behind what was read.
func see(t *testing.T, s *api.TerminalStream, want string) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	shown, end := "", uint64(0)
	for !strings.Contains(shown, want) {
		e, err := s.Recv(ctx)
		must.NoError(t, err, must.Sprintf("before %q was shown, after %q", want, shown))
		must.Nil(t, e.Exit, must.Sprint(shown))
		shown += string(e.Data)
		end = e.Offset + uint64(len(e.Data))
	}
	return end
}

func attach(t *testing.T, s *stack, id api.TerminalID, offset uint64, mode api.TerminalMode) *api.TerminalStream {
	t.Helper()
	st, err := s.client.AttachTerminal(t.Context(), id, offset, mode)
	must.NoError(t, err)
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func TestTerminals_areJoinedLeftAndJoinedAgain(t *testing.T) {
	s := newStack(t)
	box, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
	term, err := s.client.CreateTerminal(t.Context(), api.TerminalRequest{
		SandboxID: box.ID, Command: []string{"/bin/bash", "--norc", "-i"}, Env: map[string]string{"PS1": "$ "}, Size: frame.Size{Cols: 100, Rows: 30},
	})
	must.NoError(t, err)
	must.StrHasPrefix(t, string(box.ID)+"-", string(term.ID))

	one := attach(t, s, term.ID, 0, api.TerminalWrite)
	must.NoError(t, one.Write(t.Context(), []byte("echo fir''st\n")))
	seen := see(t, one, "first\r\n")
	must.NoError(t, one.Resize(t.Context(), frame.Size{Cols: 90, Rows: 20}))
	must.NoError(t, one.Write(t.Context(), []byte("shopt -s checkwinsize; (:;:); echo $LINES-$COLUMNS\n")))
	see(t, one, "20-90\r\n")

	two := attach(t, s, term.ID, 0, api.TerminalRead)
	see(t, two, "first\r\n") // what was shown before it came
	must.NoError(t, one.Write(t.Context(), []byte("echo bo''th\n")))
	see(t, two, "both\r\n")
	see(t, one, "both\r\n")

	_, err = s.client.AttachTerminal(t.Context(), term.ID, 0, api.TerminalExclusive)
	must.Eq(t, http.StatusConflict, api.AsError(err).Code)
	must.NoError(t, one.Close())
	must.NoError(t, two.Write(t.Context(), []byte("x"))) // not what it may
	for err = nil; err == nil; {
		_, err = two.Recv(t.Context())
	}
	must.Eq(t, websocket.StatusCode(api.TerminalReadOnly), websocket.CloseStatus(err))

	again := attach(t, s, term.ID, seen, api.TerminalExclusive) // from where the first one had read to
	e, err := again.Recv(t.Context())
	must.NoError(t, err)
	must.Eq(t, seen, e.Offset)
	_, err = s.client.AttachTerminal(t.Context(), term.ID, 0, api.TerminalWrite)
	must.Eq(t, http.StatusConflict, api.AsError(err).Code)
	must.NoError(t, again.Write(t.Context(), []byte("exit 7\n")))
	for {
		e, err := again.Recv(t.Context())
		must.NoError(t, err)
		if e.Exit != nil {
			must.Eq(t, 7, e.Exit.Code)
			break
		}
	}
	_, err = again.Recv(t.Context())
	must.Eq(t, websocket.StatusNormalClosure, websocket.CloseStatus(err))
	after, err := s.client.Terminal(t.Context(), term.ID)
	must.NoError(t, err)
	must.Eq(t, 7, after.Exit.Code)
}

func TestTerminals_tellOfWhatIsGone(t *testing.T) {
	s := newStack(t)
	box, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
	term, err := s.client.CreateTerminal(t.Context(), api.TerminalRequest{
		SandboxID: box.ID, Command: []string{"/bin/bash", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; read x"},
	})
	must.NoError(t, err)
	until(t, func() bool {
		now, err := s.client.Terminal(t.Context(), term.ID)
		must.NoError(t, err)
		return now.Offset == 1_000_000
	})
	st := attach(t, s, term.ID, 0, api.TerminalRead)
	e, err := st.Recv(t.Context())
	must.NoError(t, err)
	must.Eq(t, uint64(1_000_000-256<<10), e.Gap)
	must.Eq(t, e.Gap, e.Offset)
	must.NoError(t, s.client.KillTerminal(t.Context(), term.ID))
	for e.Exit == nil {
		e, err = st.Recv(t.Context())
		must.NoError(t, err)
	}
	must.Eq(t, 9, e.Exit.Signal)
}

func TestTerminals_refuseWhoMayNot(t *testing.T) {
	s := newStack(t)
	box, err := s.client.CreateSandbox(t.Context(), api.CreateRequest{Template: "base"})
	must.NoError(t, err)
	term, err := s.client.CreateTerminal(t.Context(), api.TerminalRequest{SandboxID: box.ID, Command: []string{"/bin/cat"}})
	must.NoError(t, err)
	url := s.addr + "/v1/terminals/" + string(term.ID) + "/attach"
	dial := func(query string, headers ...string) (*websocket.Conn, int) {
		h := http.Header{}
		for i := 0; i < len(headers); i += 2 {
			h.Set(headers[i], headers[i+1])
		}
		c, resp, err := websocket.Dial(t.Context(), url+query, &websocket.DialOptions{HTTPHeader: h})
		if err != nil {
			must.NotNil(t, resp, must.Sprint(err))
			return nil, resp.StatusCode
		}
		return c, resp.StatusCode
	}
	for name, tc := range map[string]struct {
		query   string
		headers []string
		status  int
	}{
		"no key":                 {"", nil, 401},
		"a wrong key":            {"", []string{"X-API-Key", "e2b_" + strings.Repeat("0", 80)}, 401},
		"a page of another site": {"", []string{"X-API-Key", s.key, "Origin", "https://evil.example.com"}, 403},
		"a wrong ticket":         {"?ticket=" + strings.Repeat("0", 48), nil, 401},
		"a mode that is none":    {"?mode=god", []string{"X-API-Key", s.key}, 400},
		"a negative offset":      {"?offset=-1", []string{"X-API-Key", s.key}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			_, status := dial(tc.query, tc.headers...)
			must.Eq(t, tc.status, status)
		})
	}
	ticket, err := s.client.TerminalTicket(t.Context(), term.ID)
	must.NoError(t, err)
	c, status := dial("?ticket=" + ticket.Ticket)
	must.Eq(t, http.StatusSwitchingProtocols, status)
	_, again := dial("?ticket=" + ticket.Ticket)
	must.Eq(t, 401, again, must.Sprint("a ticket is good once"))

	must.NoError(t, c.Write(t.Context(), websocket.MessageText, []byte(`{"type":"format the disk"}`)))
	_, _, err = c.Read(t.Context())
	for err == nil {
		_, _, err = c.Read(t.Context())
	}
	must.Eq(t, websocket.StatusCode(api.TerminalBadMessage), websocket.CloseStatus(err))

	big, status := dial("", "X-API-Key", s.key)
	must.Eq(t, http.StatusSwitchingProtocols, status)
	_ = big.Write(t.Context(), websocket.MessageBinary, make([]byte, 1<<20)) // the service may be gone before all of it is written
	for err = nil; err == nil; {
		_, _, err = big.Read(t.Context())
	}
	after, err := s.client.Terminal(t.Context(), term.ID)
	must.NoError(t, err)
	must.Nil(t, after.Exit)
	must.Eq(t, 0, after.Offset, must.Sprint("nothing of what was too large has reached the process"))
}

// BenchmarkTerminalEcho is a keystroke and its echo, through the control service.
func BenchmarkTerminalEcho(b *testing.B) {
	s := newStack(b)
	box, err := s.client.CreateSandbox(b.Context(), api.CreateRequest{Template: "base"})
	must.NoError(b, err)
	term, err := s.client.CreateTerminal(b.Context(), api.TerminalRequest{SandboxID: box.ID, Command: []string{"/bin/cat"}})
	must.NoError(b, err)
	st, err := s.client.AttachTerminal(b.Context(), term.ID, 0, api.TerminalWrite)
	must.NoError(b, err)
	defer st.Close()
	for b.Loop() {
		must.NoError(b, st.Write(b.Context(), []byte("x")))
		_, err := st.Recv(b.Context())
		must.NoError(b, err)
	}
}
