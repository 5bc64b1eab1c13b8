// Package filesystem is the protocol by which E2B clients look at and change files, generated from filesystem.proto. It owns no behaviour.
package filesystem
