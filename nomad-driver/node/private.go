package node

import (
	"strings"

	"github.com/soulbox-dev/soulbox/nomad-driver/network"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// checkMemberships checks what private networks a sandbox is to be in.
func checkMemberships(join []nodeapi.Membership) error {
	if len(join) > nodeapi.MaxMemberships {
		return invalid("network.join: %d networks, at most %d", len(join), nodeapi.MaxMemberships)
	}
	for i, m := range join {
		owner, short, ok := strings.Cut(m.Network, "/")
		switch {
		case !ok || owner == "" || len(owner) > maxOwnerWord || !isLabel(short):
			return invalid("network.join[%d].network: %.80q is no OWNER/NAME, or its name not 1 to 63 of a-z, 0-9 and -", i, m.Network)
		case !isLabel(m.Name):
			return invalid("network.join[%d].name: %.80q is not 1 to 63 of a-z, 0-9 and -", i, m.Name)
		}
		for _, o := range join[:i] {
			if o.Network == m.Network {
				return invalid("network.join[%d].network: %.80q is there twice", i, m.Network)
			}
		}
	}
	return nil
}

func isLabel(s string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

// memberships are the private networks of a sandbox as its slot has them.
func memberships(want *nodeapi.Network) []network.Membership {
	if want == nil {
		return nil
	}
	var list []network.Membership
	for _, m := range want.Join {
		_, short, _ := strings.Cut(m.Network, "/")
		list = append(list, network.Membership{Network: m.Network, Short: short, Name: m.Name})
	}
	return list
}
