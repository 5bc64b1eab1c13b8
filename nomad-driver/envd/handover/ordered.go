//go:build !race

package handover

func ordered() {}
