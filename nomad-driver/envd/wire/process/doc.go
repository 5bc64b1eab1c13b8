// Package process is the protocol by which E2B clients start and speak to processes, generated from process.proto. It owns no behaviour.
package process
