package api

import "time"

// PoolSpec is what a pool is told to be. Fields that are left out have defaults at creation, and stay as they are in a change.
type PoolSpec struct {
	Template  *string `json:"template,omitempty"`   // name
	Shared    *bool   `json:"shared,omitempty"`     // sandboxes of other tenants may come from it
	CPUMillis *int64  `json:"cpu_millis,omitempty"` // thousandths of a core, as the creates have it that it is for
	MemoryMB  *int64  `json:"memory_mb,omitempty"`  // MiB, the same
	DiskMB    *int64  `json:"disk_mb,omitempty"`    // MiB, the same
	QoS       *string `json:"qos,omitempty"`
	Profile   *string `json:"profile,omitempty"`
	// Placement is where its slots may run. Creates with the same take from it.
	Placement *Placement `json:"placement,omitempty"`

	Strategy        *string   `json:"strategy,omitempty"`                 // PoolFixed where left out, PoolDynamic or PoolHistorical
	Min             *int      `json:"min,omitempty"`                      // slots; all of them where the strategy is fixed
	Max             *int      `json:"max,omitempty"`                      // slots
	RefillThreshold *int      `json:"refill_threshold,omitempty"`         // refill begins once there are fewer; 0: at once
	Rate            *int      `json:"rate,omitempty"`                     // percent by which a dynamic pool changes at a time; 50
	MaxAge          *int64    `json:"max_age_seconds,omitempty"`          // of a slot that nobody takes; 3,600
	CleanupInterval *int64    `json:"cleanup_interval_seconds,omitempty"` // between looks at the size of a dynamic pool; 30
	WarmUp          *[]string `json:"warm_up,omitempty"`                  // shell commands that end well before a slot counts
}

// Strategies of a pool.
const (
	PoolFixed      = "fixed"
	PoolDynamic    = "dynamic"
	PoolHistorical = "historical"
)

// NewPool is the body of POST /v1/pools.
type NewPool struct {
	Name string `json:"name"`
	PoolSpec
}

// Pool keeps sandboxes of one template and size running that nobody has yet.
type Pool struct {
	ID              PoolID     `json:"id"`
	Name            string     `json:"name"`
	Tenant          string     `json:"tenant"`
	Shared          bool       `json:"shared"`
	Template        string     `json:"template"`
	CPUMillis       int64      `json:"cpu_millis"`
	MemoryMB        int64      `json:"memory_mb"`
	DiskMB          int64      `json:"disk_mb"`
	QoS             string     `json:"qos"`
	Profile         string     `json:"profile"`
	Placement       *Placement `json:"placement,omitempty"`
	Strategy        string     `json:"strategy"`
	Min             int        `json:"min"`
	Max             int        `json:"max"`
	RefillThreshold int        `json:"refill_threshold"`
	Rate            int        `json:"rate"`
	MaxAge          int64      `json:"max_age_seconds"`
	CleanupInterval int64      `json:"cleanup_interval_seconds"`
	WarmUp          []string   `json:"warm_up"`
	CreatedAt       time.Time  `json:"created_at"`
	UpdatedAt       time.Time  `json:"updated_at"`
	Status          PoolStatus `json:"status"`
}

// PoolStatus is how a pool is at the moment. What a server counts is recorded every two seconds.
type PoolStatus struct {
	Ready    int        `json:"ready"`             // slots that can be had
	Making   int        `json:"making"`            // slots on the way
	Target   int        `json:"target"`            // slots that there should be
	Hits     uint64     `json:"hits"`              // creates that got a slot
	Misses   uint64     `json:"misses"`            // creates that found none, and started a sandbox
	Oldest   *time.Time `json:"oldest"`            // when the oldest slot became ready
	Refill   float64    `json:"refill_seconds"`    // until a slot is ready, lately; 0: not known to this server
	Made     uint64     `json:"made"`              // slots that this server made
	Dropped  uint64     `json:"dropped"`           // slots that this server dropped: too old, too many, or lost
	Forecast float64    `json:"forecast"`          // creates in this window of ten minutes, by past days
	Demand   uint32     `json:"demand"`            // creates in it so far
	Problem  string     `json:"problem,omitempty"` // why the last slot could not be made
	Limited  bool       `json:"limited_by_quota"`  // the tenant's quota has no room for more
}
