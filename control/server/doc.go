// Package server is the HTTP side of the control service: it turns requests into calls of the lifecycle, the templates and
// the nodes, and their results into answers.
//
// It owns the routes, the checks of everything that comes from a client, the mapping of errors to answers, and the access
// log. It never decides what happens to a sandbox, never keeps state of its own beyond a request, and never interprets the
// frames of an exec: those are spliced. The command that starts a control service wires it; nothing else imports it.
//
// The paths of the E2B contract have the contract's fields, defaults and codes. Everything else stands under /v1.
package server
