package api

// Rebalance is how the nodes are loaded and what would be, or was, moved: GET and POST /v1/rebalance.
type Rebalance struct {
	Nodes []NodeLoad    `json:"nodes"`
	Moves []PlannedMove `json:"moves"` // the best first, each as if those before it had been made
	// Spread is the standard deviation of the nodes' loads, in percentage points, and SpreadAfter what the moves would leave of it.
	Spread      float64 `json:"spread"`
	SpreadAfter float64 `json:"spread_after"`
}

// NodeLoad is how much of a node is in use.
type NodeLoad struct {
	ID          NodeID  `json:"id"`
	Name        string  `json:"name"`
	TakesWork   bool    `json:"takes_work"`
	CPUMillis   int64   `json:"cpu_millis"` // that it has, in thousandths of a core
	MemoryBytes int64   `json:"memory_bytes"`
	Sandboxes   int     `json:"sandboxes"`    // that run
	Movable     int     `json:"movable"`      // of them
	Reserved    Load    `json:"reserved"`     // what they may use
	Used        Load    `json:"used"`         // what they used last
	Predicted   Load    `json:"predicted"`    // their mean use over the next 15 minutes, by the trend of the last
	LoadPercent float64 `json:"load_percent"` // the predicted part of processor or memory, whichever is more
}

// Load is of processor and memory.
type Load struct {
	CPUMillis   int64 `json:"cpu_millis"` // thousandths of a core
	MemoryBytes int64 `json:"memory_bytes"`
}

// PlannedMove is a sandbox that goes on on another node.
type PlannedMove struct {
	Sandbox SandboxID `json:"sandbox_id"`
	From    NodeID    `json:"from"`
	To      NodeID    `json:"to"`
	Gain    float64   `json:"gain"` // percentage points by which it lowers the spread
	Done    bool      `json:"done"`
	Error   string    `json:"error,omitempty"` // why it was not done
}

// RebalanceRequest is the body of POST /v1/rebalance. What is missing has its default.
type RebalanceRequest struct {
	Moves   int      `json:"moves,omitempty"`    // at most, 1 to 1000; 10
	AtOnce  int      `json:"at_once,omitempty"`  // moves at a time, 1 to 16; 1
	MinGain float64  `json:"min_gain,omitempty"` // of one move, in percentage points; 1
	Classes []string `json:"classes,omitempty"`  // whose sandboxes may be moved; best_effort and burstable
}
