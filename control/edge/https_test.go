package edge

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/shoenig/test/must"
)

func TestServe_speaksTLSToPortsThatDo(t *testing.T) {
	s := newScene(t, echoHeaders, nil)
	inner := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s host=%s name=%q", r.Proto, r.Host, r.TLS.ServerName)
	}))
	inner.EnableHTTP2 = true
	inner.StartTLS() // with a certificate that nobody trusts
	t.Cleanup(inner.Close)
	s.world.addr[3443] = inner.Listener.Addr().String()

	status, body, _ := s.get(t, 3443, "/")
	must.NotEq(t, 200, status, must.Sprint("nobody has said that it does: ", body))
	s.box.HTTPSPorts = []int{3443, 3444}
	status, body, _ = s.get(t, 3443, "/")
	must.Eq(t, 200, status, must.Sprint(body))
	must.Eq(t, `HTTP/1.1 host=`+s.addr+` name=""`, body)
	_, body, _ = s.get(t, 3443, "/", "Content-Type", "application/grpc")
	must.StrHasPrefix(t, "HTTP/2.0 ", body)
	_, body, _ = s.get(t, 3000, "/")
	must.StrHasPrefix(t, "host=", body, must.Sprint("others stay as they were"))
	status, body, _ = s.get(t, 3444, "/")
	must.Eq(t, 502, status)
	must.StrContains(t, body, "port is not open")
	s.box.HTTPSPorts = []int{3000, EnvdPort}
	status, body, _ = s.get(t, 3000, "/")
	must.Eq(t, 502, status, must.Sprint("it speaks none"))
	must.StrContains(t, body, "did not answer")
	status, _, _ = s.get(t, EnvdPort, "/health")
	must.Eq(t, 200, status, must.Sprint("envd is no port of the sandbox"))
}
