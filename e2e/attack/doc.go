// Package attack runs the list of attacks against SoulBox: each case acts inside a real sandbox, or on the APIs as a tenant
// may, and is judged on the host.
//
// It owns the cases and what each must come to. What acts inside is package intruder, a program of its own; nothing that it
// says counts alone: every case also compares the host, the templates, the supervisor's binary and a neighbour sandbox
// with what they were. `make attack` prints every case.
package attack
