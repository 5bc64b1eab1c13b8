package edge

import (
	"mime"
	"net/http"
	"strings"
)

// isGRPC reports whether a request is one of gRPC, whose servers speak HTTP/2 from the first byte on and nothing else. All other
// requests go to a port with HTTP/1.1, which every server speaks, whatever the client used.
func isGRPC(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && (kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+"))
}
