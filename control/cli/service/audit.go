package service

import (
	"time"

	"github.com/soulbox-dev/soulbox/control/audit"
)

// AuditBlock says how the audit log is kept. What is missing has the defaults of package audit.
type AuditBlock struct {
	Dir       string `hcl:"dir,optional"`        // on a disk of its own it cannot be filled by others; data_dir/audit
	SegmentMB int64  `hcl:"segment_mb,optional"` // of one file; 64
	MaxMB     int64  `hcl:"max_mb,optional"`     // of all files: the oldest go first; 4096
	MaxAge    string `hcl:"max_age,optional"`    // after which events go, such as "8760h"; never
	ReserveMB int64  `hcl:"reserve_mb,optional"` // of room for what ends things when the disk is full; 1
	SignEvery string `hcl:"sign_every,optional"` // between two signed heads; "2s"
}

const maxAuditMB = 64 << 20 // 64 TiB

func (f File) checkAudit(bad func(field, format string, args ...any), abs func(field, v string)) {
	a := f.Audit
	if a == nil {
		return
	}
	if a.Dir != "" {
		abs("audit.dir", a.Dir)
	}
	for _, n := range []struct {
		field string
		v     int64
	}{{"audit.segment_mb", a.SegmentMB}, {"audit.max_mb", a.MaxMB}, {"audit.reserve_mb", a.ReserveMB}} {
		if n.v < 0 || n.v > maxAuditMB {
			bad(n.field, "%d is not between 0 (the default) and %d", n.v, maxAuditMB)
		}
	}
	if c := a.config(); c.SegmentBytes > 0 && c.MaxBytes > 0 && c.MaxBytes < 2*c.SegmentBytes {
		bad("audit.max_mb", "%d is less than two segments of %d", a.MaxMB, a.SegmentMB)
	}
	for _, d := range []struct{ field, v string }{{"audit.max_age", a.MaxAge}, {"audit.sign_every", a.SignEvery}} {
		if v, err := time.ParseDuration(d.v); d.v != "" && (err != nil || v <= 0) {
			bad(d.field, "%.40q is not a duration greater than zero, such as \"24h\"", d.v)
		}
	}
}

// config is the block as the log's own configuration. Check has accepted it.
func (a *AuditBlock) config() audit.Config {
	if a == nil {
		return audit.Config{}
	}
	c := audit.Config{Dir: a.Dir, SegmentBytes: a.SegmentMB << 20, MaxBytes: a.MaxMB << 20, Reserve: a.ReserveMB << 20}
	c.MaxAge, _ = time.ParseDuration(a.MaxAge)
	c.SignEvery, _ = time.ParseDuration(a.SignEvery)
	if c.SegmentBytes > 0 && c.MaxBytes == 0 {
		c.MaxBytes = max(4<<30, 2*c.SegmentBytes)
	}
	return c
}
