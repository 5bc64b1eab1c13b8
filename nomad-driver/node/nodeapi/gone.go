package nodeapi

import "net/http"

// GoneAnswer is what a client of a sandbox's ports gets where there is no such sandbox, or it does not run: the contract's
// body, with status 502.
type GoneAnswer struct {
	SandboxID string `json:"sandboxId"`
	Message   string `json:"message"`
	Code      int    `json:"code"`
	Port      int    `json:"port,omitempty"` // where the sandbox runs, but nobody listens there
}

// Gone is the answer for a sandbox that is not there or does not run.
func Gone(id string) GoneAnswer {
	return GoneAnswer{SandboxID: id, Message: "The sandbox was not found", Code: http.StatusBadGateway}
}

// Closed is the answer for a port that nobody listens on.
func Closed(id string, port int) GoneAnswer {
	return GoneAnswer{SandboxID: id, Message: "The sandbox is running but port is not open", Code: http.StatusBadGateway, Port: port}
}
