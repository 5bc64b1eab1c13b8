package audit

import (
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// space is the room in the segment that is written to: what the file system has promised, what is written, on its way, or admitted.
// It is behind the log's mu.
type space struct {
	file     *os.File
	end      int64 // of what is written
	used     int64 // by what is on its way
	admitted int64 // tickets
	promised int64 // offset up to which writing cannot fail for want of room
	reserve  int64
}

// step is how much room is taken from the file system at a time.
const step = 4 << 20

// take takes room for one event.
func (s *space) take(vital bool) error {
	need := s.end + s.used + (s.admitted+1)*maxRecord
	want := need + s.reserve
	if want > s.promised {
		if err := s.grow(want); err != nil && (!vital || need > s.promised) {
			return err
		}
	}
	s.admitted++
	return nil
}

func (s *space) release() { s.admitted-- }

func (s *space) grow(want int64) error {
	to := want + step
	err := unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, s.promised, to-s.promised)
	if noRoom(err) { // perhaps for less
		to = want
		err = unix.Fallocate(int(s.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, s.promised, to-s.promised)
	}
	switch {
	case err == nil:
		s.promised = to
		return nil
	case errors.Is(err, unix.EOPNOTSUPP): // then a write itself has to tell
		s.promised = math.MaxInt64
		return nil
	}
	return fmt.Errorf("take room for the audit log: %w", err)
}

// move goes to a new segment, whose header ends at begin. What is on its way comes along.
func (s *space) move(file *os.File, begin int64) {
	s.file, s.end, s.promised = file, begin, begin
}

func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// datasync makes a file's content durable.
func datasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
