// Package answer writes the plain HTTP answers of envd in the contract's shape.
//
// It owns that shape. It never decides a status.
package answer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// WordHeader of an error, of a call's or of a file's, is the sandbox's own word for it, which says more than the status or the protocol's
// code: see guest.Code. It is ours, not the contract's: clients that do not know it are not touched by it.
const WordHeader = "Soulbox-Error"

// JSON writes v with a status.
func JSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"code":500,"message":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // what cannot be written any more is the client's loss
}

// Error writes an error: {"code": status, "message": …}.
func Error(w http.ResponseWriter, status int, format string, args ...any) {
	JSON(w, status, struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, fmt.Sprintf(format, args...)})
}
