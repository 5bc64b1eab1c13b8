package files

import (
	"io/fs"
	"net/http"
	"os"
	"strconv"
)

// ModeHeader of an upload is the permission bits of the files, in octal; a download's answer has those of the file. It is ours, not the
// contract's: without it a file keeps the bits it had, and a new one gets 0644.
const ModeHeader = "Soulbox-Mode"

func modeOf(h http.Header) (*os.FileMode, error) {
	v := h.Get(ModeHeader)
	if v == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > uint64(fs.ModePerm) {
		return nil, fail(http.StatusBadRequest, "header %s is '%.8s', permission bits of at most 777 (octal) are wanted", ModeHeader, v)
	}
	mode := os.FileMode(n)
	return &mode, nil
}
