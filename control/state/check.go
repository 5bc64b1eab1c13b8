package state

import "github.com/soulbox-dev/soulbox/control/api"

func (c *SandboxCreate) check() error {
	s := &c.Sandbox
	if err := checkID(s.ID); err != nil {
		return err
	}
	if s.Tenant == "" {
		return limitErrorf("tenant", "is missing")
	}
	if s.State != Starting {
		return limitErrorf("state", "is %q, a new sandbox is %q", s.State, Starting)
	}
	if s.Template == "" || len(s.Template) > MaxTemplateName || !clean(s.Template) {
		return limitErrorf("templateID", "is not 1 to %d bytes of UTF-8", MaxTemplateName)
	}
	if s.CreatedAt.IsZero() || s.EndAt.IsZero() || s.MaxEndAt.IsZero() {
		return limitErrorf("sandbox", "lacks one of its times")
	}
	if s.EndAt.After(s.MaxEndAt) {
		return limitErrorf("timeout", "lies beyond the maximum lifetime")
	}
	if err := CheckMetadata(s.Metadata); err != nil {
		return err
	}
	if err := CheckEnv(s.EnvVars); err != nil {
		return err
	}
	return CheckNetwork(s.Network)
}

func (c *SandboxRunning) check() error {
	if c.Node == "" {
		return limitErrorf("node", "is missing")
	}
	if c.StartedAt.IsZero() {
		return limitErrorf("started_at", "is missing")
	}
	return checkID(c.ID)
}

func (c *SandboxStopping) check() error {
	c.Reason = cut(c.Reason)
	return checkID(c.ID)
}

func (c *SandboxEnd) check() error {
	if len(c.Ends) == 0 || len(c.Ends) > MaxBatch {
		return limitErrorf("ends", "has %d entries, 1 to %d are allowed", len(c.Ends), MaxBatch)
	}
	for i := range c.Ends {
		e := &c.Ends[i]
		if err := checkID(e.ID); err != nil {
			return err
		}
		if !e.State.Ended() {
			return limitErrorf("state", "is %q, which is no end", e.State)
		}
		if e.At.IsZero() {
			return limitErrorf("at", "is missing")
		}
		e.Reason = cut(e.Reason)
		if e.Exit != nil {
			x := *e.Exit
			x.Message = cut(x.Message)
			e.Exit = &x
		}
	}
	return nil
}

func (c *SandboxDeadline) check() error {
	if c.EndAt.IsZero() {
		return limitErrorf("end_at", "is missing")
	}
	return checkID(c.ID)
}

func (c *SandboxNetwork) check() error {
	if err := CheckNetwork(c.Network); err != nil {
		return err
	}
	return checkID(c.ID)
}

func (c *SandboxPurge) check() error {
	if len(c.IDs) == 0 || len(c.IDs) > MaxBatch {
		return limitErrorf("ids", "has %d entries, 1 to %d are allowed", len(c.IDs), MaxBatch)
	}
	return nil
}

func (c *KeyPut) check() error { return checkKey(c.Key) }

func (c *KeyDelete) check() error {
	if c.Tenant == "" || c.ID == "" {
		return limitErrorf("key", "lacks its tenant or id")
	}
	return nil
}

func (c *KeyBootstrap) check() error { return checkKey(c.Key) }

func (c *TemplatePut) check() error {
	t := c.Template
	if t.Tenant == "" {
		return limitErrorf("tenant", "is missing")
	}
	if t.Name == "" || len(t.Name) > MaxTemplateName || !clean(t.Name) {
		return limitErrorf("name", "is not 1 to %d bytes of UTF-8", MaxTemplateName)
	}
	if t.Digest == "" || len(t.Digest) > MaxTemplateName {
		return limitErrorf("digest", "is missing or too long")
	}
	if len(t.StartCmd) > MaxTemplateCommand || len(t.ReadyCmd) > MaxTemplateCommand {
		return limitErrorf("startCmd and readyCmd", "are longer than %d bytes", MaxTemplateCommand)
	}
	return nil
}

func (c *TemplatePublish) check() error {
	if c.Tenant == "" || c.Name == "" {
		return limitErrorf("template", "lacks its tenant or name")
	}
	return nil
}

func (c *TemplateDelete) check() error {
	if c.Tenant == "" || c.Name == "" {
		return limitErrorf("template", "lacks its tenant or name")
	}
	return nil
}

func checkKey(k Key) error {
	if k.ID == "" || k.Tenant == "" {
		return limitErrorf("key", "lacks its tenant or id")
	}
	if len(k.Name) > MaxKeyName || !clean(k.Name) {
		return limitErrorf("name", "is longer than %d bytes, or not UTF-8", MaxKeyName)
	}
	if err := checkKeyRights(k.Owner, k.Roles); err != nil {
		return err
	}
	if len(k.Hash) != 32 {
		return limitErrorf("hash", "is %d bytes, not 32", len(k.Hash))
	}
	return nil
}

func checkID(id api.SandboxID) error {
	parsed, err := api.ParseSandboxID(string(id))
	if err != nil {
		return err
	}
	if parsed != id {
		return limitErrorf("sandbox id", "%.40q has a client id behind it", id)
	}
	return nil
}
