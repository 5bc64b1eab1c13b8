// Package api tests the whole way of a request in one process: the Go client, the HTTP server, the control service with its
// Raft state, and a real node that runs real sandboxes on this kernel.
package api
