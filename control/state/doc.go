// Package state is the control service's memory: what shall exist, who owns it, and what is known to have happened.
//
// It owns the tables, the commands that change them, their encoding, the snapshots, and the Raft server that orders the
// commands. It never makes an id, a time or a random value while it applies a command: they are in the command, so that
// every server computes the same tables. It never speaks to a node, a scheduler or a client. DESIGN.md tells more.
package state
