package settings

import (
	"os"
	"syscall"
)

// DevPath is the file in which a development server started by root with its default state folder leaves its address and
// its key for the other shells of this machine's root.
const DevPath = "/run/soulbox/dev.hcl"

// LoadDev reads the file of a development server. It is empty unless it belongs to the caller and to nobody else: what
// another user left there would send a caller's code to a service of that user's.
func LoadDev(path string) File {
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return File{}
	}
	if s, ok := st.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Geteuid() {
		return File{}
	}
	f, err := Load(path)
	if err != nil {
		return File{}
	}
	return f
}
