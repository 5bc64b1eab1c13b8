package driver

import "github.com/hashicorp/nomad/plugins/base"

// compute is what the client says of its processors, for turning processor time into Nomad's MHz.
type compute struct {
	cores    int
	totalMHz float64
}

func computeOf(agent *base.AgentConfig) compute {
	if agent == nil || agent.Driver == nil || agent.Driver.Topology == nil {
		return compute{}
	}
	c := agent.Compute()
	return compute{cores: c.NumCores, totalMHz: float64(c.TotalCompute)}
}

// ticks turns a percentage, in which 100 is one core in full, into MHz.
func (c compute) ticks(percent float64) float64 {
	if c.cores == 0 {
		return 0
	}
	return percent / 100 * c.totalMHz / float64(c.cores)
}
