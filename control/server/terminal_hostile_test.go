package server

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/auth"
)

// rawSocket speaks WebSocket byte by byte, as no library would.
type rawSocket struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dialRaw(t *testing.T, h *harness, query string) *rawSocket {
	t.Helper()
	addr := strings.TrimPrefix(h.http.URL, "http://")
	conn, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute))) // a hang fails; nothing here takes so long
	_, err = fmt.Fprintf(conn, "GET /v1/terminals/%s-00000000000000000000/attach%s HTTP/1.1\r\nHost: %s\r\nX-API-Key: %s\r\nConnection: Upgrade\r\n"+
		"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", testID, query, addr, keyA)
	must.NoError(t, err)
	s := &rawSocket{t, conn, bufio.NewReader(conn)}
	resp, err := http.ReadResponse(s.in, nil)
	must.NoError(t, err)
	must.Eq(t, http.StatusSwitchingProtocols, resp.StatusCode)
	return s
}

const (
	finText  = 0x81
	finBin   = 0x82
	finPing  = 0x89
	masked   = 0x80
	noMask   = 0
	zeroMask = "\x00\x00\x00\x00"
)

// frame is a masked frame with a mask of zeros.
func wsFrame(head byte, payload string) string {
	switch n := len(payload); {
	case n < 126:
		return string([]byte{head, masked | byte(n)}) + zeroMask + payload
	default:
		return string(binary.BigEndian.AppendUint16([]byte{head, masked | 126}, uint16(n))) + zeroMask + payload
	}
}

func (s *rawSocket) write(p string) error { _, err := io.WriteString(s.conn, p); return err }

// code reads until the server closes, and returns why it says that it does; 0 where it says nothing.
func (s *rawSocket) code() websocket.StatusCode {
	s.t.Helper()
	for {
		var head [2]byte
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			must.False(s.t, errors.Is(err, net.ErrClosed))
			var late net.Error
			must.False(s.t, errors.As(err, &late) && late.Timeout(), must.Sprint("the server does not close"))
			return 0
		}
		n := int(head[1])
		if n == 126 {
			var l [2]byte
			_, err := io.ReadFull(s.in, l[:])
			must.NoError(s.t, err)
			n = int(binary.BigEndian.Uint16(l[:]))
		}
		body := make([]byte, n)
		_, err := io.ReadFull(s.in, body)
		must.NoError(s.t, err)
		if head[0] == 0x88 {
			return websocket.StatusCode(binary.BigEndian.Uint16(body))
		}
	}
}

func withTerminal(t *testing.T) (*harness, *fakeNode) {
	h, f := withNode(t)
	f.tag = terminalTag + "00000000000000000000"
	return h, f
}

func TestTerminals_hostileFramesAreAnsweredWithACode(t *testing.T) {
	h, _ := withTerminal(t)
	long := func(n uint64) string {
		return string(binary.BigEndian.AppendUint64([]byte{finBin, masked | 127}, n)) + zeroMask
	}
	for name, tc := range map[string]struct {
		send string
		want websocket.StatusCode
	}{
		"a length of 2^63":         {long(1 << 63), websocket.StatusProtocolError},
		"a length of 2^63-1":       {long(1<<63-1) + strings.Repeat("x", 70<<10), websocket.StatusMessageTooBig},
		"a message too long":       {wsFrame(finBin, strings.Repeat("x", 0xffff)) + wsFrame(0x02, strings.Repeat("x", 0xffff)) + wsFrame(0x80, "xx"), websocket.StatusMessageTooBig},
		"no mask":                  {string([]byte{finBin, noMask | 1, 'x'}), websocket.StatusProtocolError},
		"text that is not UTF-8":   {wsFrame(finText, "{\"type\":\"resize\",\"cols\":80,\"rows\":24,\"x\":\"\xff\"}"), websocket.StatusInvalidFramePayloadData},
		"text that is no JSON":     {wsFrame(finText, "resize"), api.TerminalBadMessage},
		"reserved bits":            {wsFrame(finBin|0x40, "x"), websocket.StatusProtocolError},
		"an unknown opcode":        {wsFrame(0x83, "x"), websocket.StatusProtocolError},
		"a fragmented ping":        {wsFrame(0x09, "x"), websocket.StatusProtocolError},
		"a ping that is too long":  {wsFrame(finPing, strings.Repeat("x", 126)), websocket.StatusProtocolError},
		"a continuation of naught": {wsFrame(0x80, "x"), websocket.StatusProtocolError},
		"a new message in another": {wsFrame(0x02, "x") + wsFrame(finBin, "x"), websocket.StatusProtocolError},
		"pings without end":        {strings.Repeat(wsFrame(finPing, ""), maxPings+1), websocket.StatusPolicyViolation},
	} {
		t.Run(name, func(t *testing.T) {
			s := dialRaw(t, h, "")
			_ = s.write(tc.send) // the server may close before all of it is taken
			must.Eq(t, tc.want, s.code())
		})
	}
}

// TestTerminals_floodsTakeNoMemory: pings and fragments without end, from a client that reads nothing.
func TestTerminals_floodsTakeNoMemory(t *testing.T) {
	h, _ := withTerminal(t)
	for name, piece := range map[string]string{
		"pings":            strings.Repeat(wsFrame(finPing, strings.Repeat("x", 125)), 1000),
		"empty fragments":  strings.Repeat(wsFrame(0x00, ""), 10_000),
		"bytes of a close": strings.Repeat("x", 64<<10), // of a length that never ends
	} {
		t.Run(name, func(t *testing.T) {
			s := dialRaw(t, h, "")
			switch name {
			case "empty fragments":
				must.NoError(t, s.write(wsFrame(0x02, "")))
			case "bytes of a close":
				must.NoError(t, s.write(string(binary.BigEndian.AppendUint64([]byte{finBin, masked | 127}, 1<<62))+zeroMask))
			}
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			peak := uint64(0)
			sent := 0
			for s.write(piece) == nil { // until the server has had enough
				sent += len(piece)
				runtime.ReadMemStats(&after)
				peak = max(peak, after.HeapInuse)
			}
			must.Less(t, before.HeapInuse+16<<20, peak)
			t.Logf("%d bytes were sent, the heap grew by %d KiB", sent, (int64(peak)-int64(before.HeapInuse))>>10)
		})
	}
}

func TestTerminals_whoOnlyLooksOnHoldsUpNobody(t *testing.T) {
	h, f := withTerminal(t)
	for query, lossy := range map[string]bool{"?mode=read": true, "?mode=write": false, "": false} {
		s := dialRaw(t, h, query)
		_ = s.write(wsFrame(0x88, "\x03\xe8"))
		s.code()
		f.mu.Lock()
		must.Eq(t, lossy, f.attached.Lossy, must.Sprint(query))
		f.mu.Unlock()
	}
}

func TestTickets_areBoundedForEachTenant(t *testing.T) {
	tk := newTickets()
	now := time.Now()
	id := api.TerminalID("iaaaaaaaaaaaaaaaaaaaa-00000000000000000000")
	a, b := auth.Identity{Tenant: "a"}, auth.Identity{Tenant: "b"}
	var last api.TerminalTicket
	for range maxTickets {
		var ok bool
		last, ok = tk.issue(id, a, now)
		must.True(t, ok)
	}
	_, ok := tk.issue(id, a, now)
	must.False(t, ok)
	_, ok = tk.issue(id, b, now)
	must.True(t, ok, must.Sprint("another tenant is not touched"))
	_, ok = tk.redeem(last.Ticket, id, now)
	must.True(t, ok)
	_, ok = tk.issue(id, a, now)
	must.True(t, ok, must.Sprint("a used one counts no more"))
	_, ok = tk.issue(id, a, now.Add(ticketTime+2*time.Second))
	must.True(t, ok, must.Sprint("nor do those that are too old"))
	must.MapLen(t, 1, tk.words)
	must.Eq(t, map[string]int{"a": 1}, tk.out)
}
