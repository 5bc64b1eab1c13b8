package checkpoint

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// writeOutEvery is how often it is looked for what has been written since.
	writeOutEvery = 4 * time.Millisecond
	// writeOutLeast is what is worth a request of its own, in bytes.
	writeOutLeast = 4 << 20
	// writeOutAnyway is how much has to be written to for that even where nobody will sync it: the kernel makes whoever writes faster than the disk wait.
	writeOutAnyway = 256 << 20
)

// writeOut has the kernel write images of pages to disk while CRIU makes them, so that whoever syncs them then waits for their ends only. It is a hint: what cannot
// be begun is left to that sync. stop waits for it, and may be called once.
func writeOut(folders ...string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		begun := map[string]int64{}
		tick := time.NewTicker(writeOutEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			for _, dir := range folders {
				paths, err := filepath.Glob(filepath.Join(dir, "pages-[0-9]*.img"))
				if err != nil {
					return
				}
				for _, path := range paths {
					begun[path] = writeOutFrom(path, begun[path])
				}
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// writeOutFrom begins with what there is of a file from an offset on, if that is much, and returns the offset of what is left.
func writeOutFrom(path string, from int64) int64 {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return from
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return from
	}
	to := fi.Size() / writeOutLeast * writeOutLeast // what CRIU writes to right now stays out of it
	if to <= from || unix.SyncFileRange(int(f.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE) != nil {
		return from
	}
	return to
}
