// Package shape is the traffic control of one link: how fast, how late and how unreliably it carries packets in one direction.
//
// It owns the queueing disciplines of the interface that it is given, and changes them live. Of a sandbox's two directions each is
// shaped where it enters the link: what it receives on the host's end, what it sends on the end inside, whose namespace the sandbox
// has no power over. It knows no sandbox and no policy.
package shape

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Bounds of Direction.
const (
	MinRate  = 8 << 10   // bytes a second
	MaxRate  = 1<<32 - 1 // bytes a second; what the discipline counts in
	MaxBurst = 64 << 20  // bytes
	MaxDelay = 10 * time.Second
)

// ErrUnsupported is in the chain of errors that say what the kernel lacks.
var ErrUnsupported = errors.New("not supported by this kernel")

// Direction is how a link carries packets one way. The zero Direction does not shape.
type Direction struct {
	Rate  uint64 `json:"rate_bytes,omitempty"`  // bytes a second, headers included
	Burst uint64 `json:"burst_bytes,omitempty"` // that may pass at once after a pause; 0: 10 ms worth, at least 64 KiB

	Delay     time.Duration `json:"delay_nanos,omitempty"`
	Jitter    time.Duration `json:"jitter_nanos,omitempty"` // around Delay
	Loss      float64       `json:"loss,omitempty"`         // share of packets, 0 to 1
	Duplicate float64       `json:"duplicate,omitempty"`
	Reorder   float64       `json:"reorder,omitempty"` // share that overtakes the delayed ones
}

// Check checks the bounds. Its errors name the field.
func (d Direction) Check() error {
	switch {
	case d.Rate != 0 && (d.Rate < MinRate || d.Rate > MaxRate):
		return fmt.Errorf("rate_bytes is %d, must be 0 or between %d and %d", d.Rate, uint64(MinRate), uint64(MaxRate))
	case d.Burst > MaxBurst:
		return fmt.Errorf("burst_bytes is %d, at most %d", d.Burst, uint64(MaxBurst))
	case d.Burst != 0 && d.Rate == 0:
		return errors.New("burst_bytes without rate_bytes")
	case d.Delay < 0 || d.Delay > MaxDelay:
		return fmt.Errorf("delay is %s, must be between 0 and %s", d.Delay, MaxDelay)
	case d.Jitter < 0 || d.Jitter > d.Delay:
		return fmt.Errorf("jitter is %s, must be between 0 and the delay", d.Jitter)
	case d.Reorder > 0 && d.Delay == 0:
		return errors.New("reorder without delay: nothing could be overtaken")
	}
	for _, f := range []struct {
		name string
		v    float64
	}{{"loss", d.Loss}, {"duplicate", d.Duplicate}, {"reorder", d.Reorder}} {
		if !(f.v >= 0 && f.v <= 1) { // also what is no number
			return fmt.Errorf("%s is %g, must be between 0 and 1", f.name, f.v)
		}
	}
	return nil
}

// unreliable reports whether d needs netem.
func (d Direction) unreliable() bool {
	return d.Delay != 0 || d.Loss != 0 || d.Duplicate != 0 || d.Reorder != 0
}

// Apply shapes what leaves through an interface; what shaped it before ends. h is a handle of the namespace that the interface is in.
// On error nothing has changed, or where that cannot be said, nothing shapes it.
func Apply(h *netlink.Handle, index int, d Direction) error {
	if err := d.Check(); err != nil {
		return err
	}
	if err := clear(h, index); err != nil {
		return err
	}
	parent := uint32(netlink.HANDLE_ROOT)
	if d.unreliable() {
		q := netlink.NewNetem(netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: parent}, netlink.NetemQdiscAttrs{
			Latency: micros(d.Delay), Jitter: micros(d.Jitter), Loss: float32(d.Loss * 100), Duplicate: float32(d.Duplicate * 100),
			ReorderProb: float32(d.Reorder * 100), Limit: netemPackets,
		})
		if err := h.QdiscAdd(q); err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("delay, jitter, duplicate and reorder, and loss together with them, need netem (sch_netem): %w", ErrUnsupported)
			}
			return fmt.Errorf("netem: %w", err)
		}
		parent = netlink.MakeHandle(1, 1)
	}
	if d.Rate == 0 {
		return nil
	}
	burst := d.burst()
	err := h.QdiscAdd(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(2, 0), Parent: parent},
		Rate:       d.Rate, Buffer: netlink.Xmittime(d.Rate, burst),
		// What may wait: 50 ms, so that TCP learns of the limit and nobody waits for a second.
		Limit: burst + uint32(min(max(d.Rate/20, 128<<10), 64<<20)), //nolint:gosec // bounded
	})
	if err != nil {
		return errors.Join(fmt.Errorf("tbf: %w", err), clear(h, index))
	}
	return nil
}

const (
	netemPackets = 20_000    // that may be delayed at the same time
	minBurst     = 128 << 10 // two packets of the largest size that a link carries at once
)

func (d Direction) burst() uint32 {
	b := d.Burst
	if b == 0 {
		b = d.Rate / 100
	}
	return uint32(min(max(b, minBurst), MaxBurst)) //nolint:gosec // bounded
}

func micros(d time.Duration) uint32 { return uint32(d / time.Microsecond) } //nolint:gosec // bounded by MaxDelay

// clear removes the root discipline of an interface, so that it has the kernel's default.
func clear(h *netlink.Handle, index int) error {
	err := h.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_ROOT}})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // there was none
		return fmt.Errorf("remove traffic control: %w", err)
	}
	return nil
}
