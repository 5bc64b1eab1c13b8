package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
)

// noteSize is the size of a note, in bytes: no more than a page, since a process that is killed while it writes to one has written all or nothing.
const noteSize = pageSize

// WriteNote writes down, as JSON, what a daemon that comes after this one has to know of the processes that this one has started. It need not outlive the machine's
// uptime, as they do not, and is on the way of every restore: so it is written over in place. To write it anew has ext4 begin to write it to disk at once, since
// programs that replace a file often forget to (auto_da_alloc in ext4(5)), which takes milliseconds.
func WriteNote(path string, v any) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if fi, err := os.Stat(path); len(b) > noteSize || err == nil && fi.Size() > noteSize { // of very many files
		temp := path + ".new"
		if err := os.WriteFile(temp, b, 0o600); err != nil {
			return err
		}
		return os.Rename(temp, path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(append(b, bytes.Repeat([]byte{' '}, noteSize-len(b))...), 0)
	return errors.Join(err, f.Close())
}
