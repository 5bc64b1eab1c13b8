package nomad

import (
	"strings"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
)

// The words that the driver shares with this package.
const (
	// PayloadFile is the file of the task's local directory into which Nomad writes a dispatch's payload: the sandbox's
	// nodeapi.CreateRequest as JSON.
	PayloadFile = "sandbox.json"
	// MetaSandboxID is the meta key of a dispatched job that holds the sandbox's id.
	MetaSandboxID = "sandbox_id"
	// DriverName is the name of the task driver.
	DriverName = "soulbox"

	taskName = "sandbox"
)

// lostAfter is how long Nomad waits for a client that it does not hear of before it places its allocations anew. A sandbox
// is its memory and files: a second one is no replacement. Only the control service ends it or makes a new one, so this is
// longer than any sandbox lives.
const lostAfter = 365 * 24 * time.Hour

// parent returns the parameterized job of a class. Everything that a client of SoulBox chooses is in the payload and
// nowhere in the job, so that no request can become a part of a job specification.
//
// The job is of type batch, because Nomad replaces what it drains of a service and lets a batch allocation run until the
// drain's deadline, then ends it for good.
func (p *Placer) parent(c class) *nomadapi.Job {
	id := c.jobID(p.cfg.Prefix)
	task := &nomadapi.Task{
		Name:            taskName,
		Driver:          p.cfg.Driver,
		Config:          p.cfg.taskConfig,
		DispatchPayload: &nomadapi.DispatchPayloadConfig{File: PayloadFile},
		KillTimeout:     &p.cfg.KillTimeout,
		Resources: &nomadapi.Resources{
			CPU:      new(int(max(1, c.cpuMillis*int64(p.cfg.MHzPerCore)/1000))),
			MemoryMB: new(int(c.memoryMB)),
		},
		// Nomad starts a log collector of its own (50 ms, 67 MB) for each task that does not say so.
		LogConfig: &nomadapi.LogConfig{Disabled: new(true), MaxFiles: new(1), MaxFileSizeMB: new(1)},
	}
	group := &nomadapi.TaskGroup{
		Name:  new(taskName),
		Count: new(1),
		Tasks: []*nomadapi.Task{task},
		RestartPolicy: &nomadapi.RestartPolicy{
			Attempts: new(0), Mode: new(nomadapi.RestartPolicyModeFail), Interval: new(time.Hour), Delay: new(time.Second),
		},
		ReschedulePolicy: &nomadapi.ReschedulePolicy{
			Attempts: new(0), Unlimited: new(false), Interval: new(time.Hour),
			Delay: new(5 * time.Second), DelayFunction: new("constant"), MaxDelay: new(time.Duration(0)),
		},
		EphemeralDisk: &nomadapi.EphemeralDisk{SizeMB: new(10), Sticky: new(false), Migrate: new(false)},
		Disconnect: &nomadapi.DisconnectStrategy{
			LostAfter: new(lostAfter), Replace: new(false), Reconcile: new(nomadapi.ReconcileOptionKeepOriginal),
		},
	}
	if c.node != "" { // a node has the id of its Nomad client
		group.Constraints = []*nomadapi.Constraint{nomadapi.NewConstraint("${node.unique.id}", "=", string(c.node))}
	}
	if c.prefer != "" {
		group.Affinities = append(group.Affinities, nomadapi.NewAffinity("${node.unique.id}", "=", string(c.prefer), preferWeight))
	}
	rules := c.rules.Placement()
	for _, r := range rules.Constraints {
		group.Constraints = append(group.Constraints, nomadapi.NewConstraint(target(r.Attribute, p.cfg.Driver), r.Operator, r.Value))
	}
	for _, a := range rules.Affinities {
		group.Affinities = append(group.Affinities, nomadapi.NewAffinity(target(a.Attribute, p.cfg.Driver), a.Operator, a.Value, int8(a.Weight)))
	}
	for _, d := range rules.Devices {
		want := &nomadapi.RequestedDevice{Name: d.Name, Count: new(uint64(d.Count))}
		for _, r := range d.Constraints {
			want.Constraints = append(want.Constraints, nomadapi.NewConstraint("${device."+r.Attribute+"}", r.Operator, r.Value))
		}
		task.Resources.Devices = append(task.Resources.Devices, want)
	}
	priority := p.cfg.Priority
	if rules.Priority != 0 {
		priority = rules.Priority
	}
	nodes := p.cfg.NodePool
	if c.tenant != "" {
		nodes = pool(c.tenant)
	}
	return &nomadapi.Job{
		ID: &id, Name: &id,
		Region: optional(p.cfg.Region), Namespace: optional(p.cfg.Namespace), NodePool: optional(nodes),
		Type: new(nomadapi.JobTypeBatch), Priority: new(priority), Datacenters: p.cfg.Datacenters,
		ParameterizedJob: &nomadapi.ParameterizedJobConfig{Payload: "required", MetaRequired: []string{MetaSandboxID}},
		TaskGroups:       []*nomadapi.TaskGroup{group},
	}
}

// preferWeight is what the node that a sandbox had better be on counts, beside 100 of the strongest rule of a client.
const preferWeight = 50

// target is Nomad's name for an attribute of a rule.
func target(attribute, driver string) string {
	kind, name, _ := strings.Cut(attribute, ".")
	switch kind {
	case "kernel":
		return "${attr.driver." + driver + ".probe." + name + "}"
	case "label":
		return "${meta." + name + "}"
	case "attr":
		return "${attr." + name + "}"
	}
	switch name {
	case "id", "name":
		return "${node.unique." + name + "}"
	}
	return "${node." + name + "}"
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
