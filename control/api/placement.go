package api

// Placement says where a sandbox may run, and where it had better: the member "placement" of CreateOptions, and of pools.
type Placement struct {
	// Constraints must all hold of a node that gets the sandbox. At most 16.
	Constraints []PlacementRule `json:"constraints,omitempty"`
	// Affinities weigh nodes of which they hold against others. At most 16.
	Affinities []PlacementAffinity `json:"affinities,omitempty"`
	// Devices are reserved for the sandbox alone, by name, at most 8 of them. A sandbox with any is neither checkpointed nor moved.
	Devices []DeviceRequest `json:"devices,omitempty"`
	// Strategy is PlaceBinPack or PlaceSpread. Empty: as the scheduler is set.
	Strategy string `json:"strategy,omitempty"`
	// Priority is the scheduler's: 1 to 100, at most what the operator has set for sandboxes. 0: that.
	Priority int `json:"priority,omitempty"`
}

// Strategies of a Placement.
const (
	PlaceBinPack = "bin_pack" // nodes are filled one after the other
	PlaceSpread  = "spread"   // the node with the fewest sandboxes for its size comes first
)

// DeviceRequest asks for devices that an operator's nodes offer through the scheduler's device plugins.
type DeviceRequest struct {
	Name        string          `json:"name"`                  // type, vendor/type or vendor/type/model: "gpu", "nvidia/gpu"
	Count       int             `json:"count,omitempty"`       // 1 to 128; 0: 1
	Constraints []PlacementRule `json:"constraints,omitempty"` // on attributes model, vendor, type, ids and attr.<name> of the device. At most 16
}

// PlacementRule is a condition on a node.
type PlacementRule struct {
	// Attribute is node.id, node.name, node.datacenter, node.region, node.class, kernel.<probe> ("true" or "false", as GET /v1/nodes lists
	// them), label.<name>, which is what an operator has written on the node, or attr.<name>, which is what the scheduler has found out.
	Attribute string `json:"attribute"`
	// Operator is =, !=, <, <=, >, >=, regexp, version, semver, set_contains, set_contains_any, is_set or is_not_set. Empty: =.
	Operator string `json:"operator,omitempty"`
	Value    string `json:"value,omitempty"` // at most 256 bytes
}

// PlacementAffinity is a condition that counts.
type PlacementAffinity struct {
	PlacementRule
	Weight int `json:"weight"` // -100 to 100, and not 0; below 0: rather elsewhere
}
