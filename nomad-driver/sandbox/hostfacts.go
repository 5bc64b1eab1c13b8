package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// lastCapability returns the highest capability that the kernel knows.
var lastCapability = sync.OnceValue(func() uintptr {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 6); err == nil {
			return uintptr(n)
		}
	}
	return unix.CAP_LAST_CAP
})

// bootID names this run of the kernel.
var bootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return string(bytes.TrimSpace(b)), nil
})

func procPath(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }
