package network

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/network/firewall"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/shape"
)

// Shape changes how fast and how reliably a slot's link carries packets: in is what the sandbox receives, out what it sends. Loss alone is
// the firewall's where the kernel has no netem. What the kernel cannot do is shape.ErrUnsupported in the error's chain, and that direction is not
// shaped. netns is the slot's namespace, where the slot itself has none.
func (p *Pool) Shape(s *Slot, netns *os.File, in, out shape.Direction) error {
	if err := in.Check(); err != nil {
		return fmt.Errorf("in: %w", err)
	}
	if err := out.Check(); err != nil {
		return fmt.Errorf("out: %w", err)
	}
	m := p.meter(s)
	var err error
	if m.LossIn, err = direct(p.host, s.Index, in); err != nil {
		return fmt.Errorf("network slot %d: in: %w", s.Number, err)
	}
	if m.LossOut, err = p.shapeInside(s, netns, out); err != nil {
		return fmt.Errorf("network slot %d: out: %w", s.Number, err)
	}
	return p.setMeter(s, m, 0)
}

// shapeInside shapes what leaves through a slot's inner end, and returns what the firewall is to lose of it.
func (p *Pool) shapeInside(s *Slot, netns *os.File, out shape.Direction) (loss float64, err error) {
	if s.netns != nil {
		netns = s.netns
	}
	if netns == nil && out == (shape.Direction{}) {
		return 0, nil
	}
	if netns == nil {
		return 0, errors.New("its namespace is not at hand")
	}
	h, err := handleAt(netns)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	link, err := h.LinkByName(InnerLink)
	if err != nil {
		return 0, err
	}
	return direct(h, link.Attrs().Index, out)
}

// direct shapes one direction, and returns the share of packets that is left to be lost: the kernel has no netem, and nothing but loss needs it.
func direct(h *netlink.Handle, index int, d shape.Direction) (loss float64, err error) {
	err = shape.Apply(h, index, d)
	if errors.Is(err, shape.ErrUnsupported) && d.Loss > 0 && d.Delay == 0 && d.Duplicate == 0 {
		loss, d.Loss = d.Loss, 0
		err = shape.Apply(h, index, d)
	}
	return loss, err
}

// SetQuota changes how many bytes a slot's link carries, both ways together, until nothing passes any more; 0: without end. What it has carried since it
// has had a quota is kept; used is what counts as carried before that.
func (p *Pool) SetQuota(s *Slot, limit, used uint64) error {
	m := p.meter(s)
	m.Quota = limit
	return p.setMeter(s, m, used)
}

// Quota returns how many bytes a slot's link may carry, and how many it has; no limit where there is none.
func (p *Pool) Quota(s *Slot) (limit, used uint64, err error) { return p.fw.Quota(s.Firewall()) }

func (p *Pool) meter(s *Slot) firewall.Meter {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.meters[s.Number]
}

func (p *Pool) setMeter(s *Slot, m firewall.Meter, used uint64) error {
	if m == p.meter(s) {
		return nil
	}
	err := p.fw.SetMeter(s.Firewall(), m, used)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("loss without netem needs nft_numgen and a quota nft_quota: %w (%w)", shape.ErrUnsupported, err)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.meters[s.Number] = m
	if m == (firewall.Meter{}) {
		delete(p.meters, s.Number)
	}
	return nil
}
