package audit

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config of a Log. Dir and Signer are required; zero values of the rest mean the defaults.
type Config struct {
	Dir    string // made where it is missing
	Server string // whose log it is, for people; the machine's name
	Signer Signer
	Logger hclog.Logger
	Now    func() time.Time

	SegmentBytes int64         // at which a new segment begins; 64 MiB
	MaxBytes     int64         // of all segments: the oldest go first; 4 GiB
	MaxAge       time.Duration // of the newest event of a segment, after which it goes; 0: never
	Reserve      int64         // of room that only what ends things may use; 1 MiB
	SignEvery    time.Duration // between two heads while there is something new; 2 s
	SignTimeout  time.Duration // of one call to the signer; 10 s
	RepeatEvery  time.Duration // in which the same refusal is one event with a count; 1 min
	RetainEvery  time.Duration // between two looks at MaxBytes and MaxAge; 1 min
}

const minSegment = 64 << 10

func (c *Config) check() error {
	if c.Dir == "" || c.Signer == nil {
		return errors.New("audit: folder and signer are required")
	}
	if c.Server == "" {
		c.Server, _ = os.Hostname()
	}
	if len(c.Server) > maxWord {
		return fmt.Errorf("audit: the server's name has %d bytes, at most %d are kept", len(c.Server), maxWord)
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	for _, v := range []struct {
		p *int64
		d int64
	}{{&c.SegmentBytes, 64 << 20}, {&c.MaxBytes, 4 << 30}, {&c.Reserve, 1 << 20}} {
		if *v.p == 0 {
			*v.p = v.d
		}
	}
	for _, v := range []struct {
		p *time.Duration
		d time.Duration
	}{{&c.SignEvery, 2 * time.Second}, {&c.SignTimeout, 10 * time.Second}, {&c.RepeatEvery, time.Minute}, {&c.RetainEvery, time.Minute}} {
		if *v.p == 0 {
			*v.p = v.d
		}
		if *v.p < 0 {
			return errors.New("audit: a negative time")
		}
	}
	if c.SegmentBytes < minSegment || c.MaxBytes < 2*c.SegmentBytes || c.MaxAge < 0 || c.Reserve < 0 {
		return fmt.Errorf("audit: a segment has at least %d bytes, all segments at least twice as much as one, and no limit is negative", minSegment)
	}
	return nil
}
