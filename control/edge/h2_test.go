package edge

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestRedirect_toTheNodeForWhoAsks(t *testing.T) {
	s := newScene(t, echoHeaders, func(c *Config) { c.Links = verifier{"v2.good": boxID} })
	s.node = "https://10.0.0.7:7302"
	http.DefaultClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() { http.DefaultClient.CheckRedirect = nil })
	for name, tc := range map[string]struct {
		port         int
		path, prefer string
		want         string // Location
	}{
		"envd":                   {EnvdPort, "/files?path=a%20b", "redirect", "https://10.0.0.7:7302/prefix/files?path=a%20b"},
		"an escaped path":        {EnvdPort, "/a%2Fb", "respond-async, Redirect; x=1", "https://10.0.0.7:7302/prefix/a%2Fb"},
		"nobody asks":            {EnvdPort, "/health", "", ""},
		"another preference":     {EnvdPort, "/health", "redirected", ""},
		"a port":                 {3000, "/", "redirect", ""},
		"a link the edge checks": {EnvdPort, "/files?signature=v2.good", "redirect", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, _, h := s.get(t, tc.port, tc.path, "Prefer", tc.prefer)
			must.Eq(t, tc.want, h.Get("Location"))
			if tc.want == "" {
				must.Eq(t, 200, status)
				return
			}
			must.Eq(t, 307, status)
			must.Eq(t, "redirect", h.Get("Preference-Applied"))
		})
	}
	s.node = "" // on a socket of this machine
	status, _, _ := s.get(t, EnvdPort, "/health", "Prefer", "redirect")
	must.Eq(t, 200, status)
	s.gone = true
	status, _, _ = s.get(t, EnvdPort, "/health", "Prefer", "redirect")
	must.Eq(t, 502, status)
}

// h2Client speaks HTTP/2 from the first byte on.
func h2Client(t *testing.T) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestServe_gRPCGoesThroughWithItsTrailersAndBothWays(t *testing.T) {
	in := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("X-Proto", r.Proto+" te="+r.Header.Get("Te"))
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		buf := make([]byte, 4)
		for {
			if _, err := io.ReadFull(r.Body, buf); err != nil {
				break
			}
			_, _ = w.Write(bytes.ToUpper(buf))
			_ = rc.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	}))
	in.Config.Protocols = new(http.Protocols)
	in.Config.Protocols.SetUnencryptedHTTP2(true) // and nothing else
	in.Start()
	t.Cleanup(in.Close)
	s := newScene(t, echoHeaders, nil)
	s.world.addr[50051] = in.Listener.Addr().String()
	body, say := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/svc/Method", body)
	must.NoError(t, err)
	r.Host = fmt.Sprintf("50051-%s.x", boxID)
	r.Header.Set("Content-Type", "application/grpc+proto")
	r.Header.Set("Te", "trailers")
	resp, err := h2Client(t).Do(r)
	must.NoError(t, err)
	defer resp.Body.Close()
	must.Eq(t, "HTTP/2.0 te=trailers", resp.Header.Get("X-Proto"))
	buf := make([]byte, 4)
	for _, word := range []string{"ping", "pong"} { // each is answered before the next is sent
		_, err = io.WriteString(say, word)
		must.NoError(t, err)
		_, err = io.ReadFull(resp.Body, buf)
		must.NoError(t, err)
		must.Eq(t, strings.ToUpper(word), string(buf))
	}
	must.NoError(t, say.Close())
	_, err = io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, "0", resp.Trailer.Get("Grpc-Status"))
}

func TestServe_otherRequestsOverHTTP2ReachServersThatSpeakHTTP1(t *testing.T) {
	s := newScene(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, b)
	}, nil)
	for _, kind := range []string{"text/plain", "application/grpc-web+proto"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, strings.NewReader("body"))
		must.NoError(t, err)
		r.Host = "3000-" + string(boxID) + ".x"
		r.Header.Set("Content-Type", kind)
		resp, err := h2Client(t).Do(r)
		must.NoError(t, err)
		b, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, "HTTP/2.0", resp.Proto)
		must.Eq(t, "HTTP/1.1 "+r.Host+" body", string(b))
	}
}

// What HTTP/2 can say and HTTP/1 would read as something else does not pass.
func TestServe_refusesSmugglingOverHTTP2(t *testing.T) {
	var inside []string
	s := newScene(t, func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return // broken off: the connection is of no use to anybody after that
		}
		inside = append(inside, fmt.Sprintf("%s %s %q %q", r.Method, r.URL.Path, b, r.TransferEncoding))
	}, nil)
	host := "3000-" + string(boxID) + ".x"
	for name, fields := range map[string][]string{
		"chunks":                  {"transfer-encoding", "chunked"},
		"a connection header":     {"connection", "x"},
		"a line break in a value": {"x", "a\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nX: "},
		"a line break in a name":  {"x: a\r\ny", "b"},
		"a capital name":          {"X-Upper", "a"},
		"two lengths":             {"content-length", "3", "content-length", "5"},
		"a length that lies":      {"content-length", "60"},
		"a length that is none":   {"content-length", "+3"},
		"an upgrade":              {"upgrade", "websocket"},
		"a line break in a path":  {":path", "/a HTTP/1.1\r\nX: y"},
		"a line break in a host":  {":authority", host + "\r\nX: y"},
		"a method that is two":    {":method", "GET /smuggled HTTP/1.1\r\nX: y"},
	} {
		t.Run(name, func(t *testing.T) {
			status := s.h2(t, host, fields, "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
			must.StrContains(t, "400 502 reset closed", status)
		})
	}
	must.SliceEmpty(t, inside, must.Sprint("none came to the server inside"))
	must.Eq(t, "200", s.h2(t, host, nil, "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"), must.Sprint("the same body is a body, without them"))
	must.Eq(t, []string{`POST /a "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" ["chunked"]`}, inside)
}

// h2 sends a POST of frames made by hand, and returns its status, "reset" or "closed".
func (s *scene) h2(t *testing.T, host string, fields []string, body string) string {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	must.NoError(t, err)
	defer c.Close()
	must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, http2.ClientPreface)
	must.NoError(t, err)
	f := http2.NewFramer(c, c)
	must.NoError(t, f.WriteSettings())
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	head := map[string]string{":method": "POST", ":scheme": "http", ":authority": host, ":path": "/a"}
	var rest []string
	for i := 0; i < len(fields); i += 2 {
		if strings.HasPrefix(fields[i], ":") {
			head[fields[i]] = fields[i+1]
		} else {
			rest = append(rest, fields[i], fields[i+1])
		}
	}
	for _, name := range []string{":method", ":scheme", ":authority", ":path"} {
		must.NoError(t, enc.WriteField(hpack.HeaderField{Name: name, Value: head[name]}))
	}
	for i := 0; i < len(rest); i += 2 {
		must.NoError(t, enc.WriteField(hpack.HeaderField{Name: rest[i], Value: rest[i+1]}))
	}
	must.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}))
	must.NoError(t, f.WriteData(1, true, []byte(body)))
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch fr := fr.(type) {
		case *http2.RSTStreamFrame:
			return "reset"
		case *http2.GoAwayFrame:
			return "closed"
		case *http2.MetaHeadersFrame:
			return fr.PseudoValue("status")
		}
	}
}
