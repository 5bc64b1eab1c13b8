package probe

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/soulbox-dev/soulbox/nomad-driver/osthread"
)

// inNetNS runs do on a thread in a new network namespace, which ends with the thread.
func inNetNS(do func() error) (err error) {
	osthread.ThrowAway(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("unshare: %w", err)
			return
		}
		err = do()
	})
	return err
}

func checkVeth(context.Context, Options) (string, error) {
	return "", inNetNS(func() error {
		return addLink(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"})
	})
}

func addLink(l netlink.Link) error {
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("add %s: %w", l.Type(), err)
	}
	return nil
}

// checkQdisc puts a queueing discipline on the loopback of a new namespace.
func checkQdisc(kind string) func(context.Context, Options) (string, error) {
	return func(context.Context, Options) (string, error) {
		return "", inNetNS(func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return fmt.Errorf("loopback: %w", err)
			}
			attrs := netlink.QdiscAttrs{LinkIndex: lo.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
			var q netlink.Qdisc = &netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: kind}
			switch kind {
			case "netem":
				q = netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Latency: 1000})
			case "htb":
				q = netlink.NewHtb(attrs)
			}
			if err := netlink.QdiscAdd(q); err != nil {
				return fmt.Errorf("tc qdisc %s: %w", kind, err)
			}
			return nil
		})
	}
}

// checkNftables opens the netlink family that nftables speaks and asks for its generation.
func checkNftables(context.Context, Options) (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	const (
		nfnlSubsysNftables = 10
		nftMsgGetGen       = 16
		headerLen          = 20 // nlmsghdr and nfgenmsg
	)
	msg := [headerLen]byte{0: headerLen, 4: nftMsgGetGen, 5: nfnlSubsysNftables, 6: unix.NLM_F_REQUEST}
	if err := unix.Sendto(fd, msg[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	if n < headerLen {
		return "", errors.New("netlink: short answer")
	}
	if typ := uint16(answer[4]) | uint16(answer[5])<<8; typ == unix.NLMSG_ERROR {
		errno := int32(uint32(answer[16]) | uint32(answer[17])<<8 | uint32(answer[18])<<16 | uint32(answer[19])<<24)
		return "", fmt.Errorf("nf_tables: %w", unix.Errno(-errno))
	}
	return "", nil
}
