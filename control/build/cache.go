package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
)

// keyVersion changes where the same instructions come to mean something else.
const keyVersion = "2\n"

// keyOf is what a build's content depends on, in one word: what it begins with, and all that is done. Files count by their hash.
func keyOf(base state.Template, in api.BuildInstructions) string {
	in.FromTemplate, in.FromImageRegistry, in.Force = "", nil, false
	in.Steps = slices.Clone(in.Steps)
	for i := range in.Steps {
		in.Steps[i].Force = false
	}
	text, _ := json.Marshal(in) // strings and numbers only
	sum := sha256.Sum256(append([]byte(keyVersion+base.Digest+"\n"), text...))
	return hex.EncodeToString(sum[:])
}

// before returns the template that an equal build has made, unless the build wants everything done anew.
func (s *Service) before(b *build, key string, in api.BuildInstructions) (state.Template, error) {
	if in.Force || slices.ContainsFunc(in.Steps, func(st api.BuildStep) bool { return st.Force }) {
		return state.Template{}, nil
	}
	return s.cfg.Templates.BuiltBefore(b.Tenant, key)
}

// again gives the build's names to what was built before.
func (s *Service) again(ctx context.Context, b *build, before state.Template) error {
	b.say("info", stepFinalize, "CACHED: build "+before.BuildID+" did the same")
	made, err := s.cfg.Templates.BuildAgain(ctx, before, b.nameFor(b.Tags[0]), template.Built{
		TemplateID: b.TemplateID, BuildID: b.ID, CPUMillis: b.CPUMillis, MemoryMB: b.MemoryMB,
	})
	if err != nil {
		return err
	}
	return b.tag(ctx, made)
}
