// Package wire holds the protocols that E2B clients speak to a sandbox, and the code that is generated from them. It owns no
// behaviour: packages process and filesystem beside it have that.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative process/process.proto filesystem/filesystem.proto
