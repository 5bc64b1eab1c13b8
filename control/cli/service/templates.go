package service

import (
	"context"
	"io"

	"github.com/soulbox-dev/soulbox/control/auth"
	"github.com/soulbox-dev/soulbox/control/server"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/control/template"
)

// templates is the template service as the HTTP server wants it.
type templates struct{ *template.Service }

var _ server.Templates = templates{}

// Import implements server.Templates.
func (t templates) Import(ctx context.Context, caller auth.Identity, name, source string, r io.Reader) (state.Template, error) {
	return t.Service.Import(ctx, caller.Tenant, name, source, r)
}

// List implements server.Templates.
func (t templates) List(_ context.Context, tenant string) ([]state.Template, error) {
	return t.Service.List(tenant)
}

// Get implements server.Templates.
func (t templates) Get(_ context.Context, tenant, name string) (state.Template, error) {
	return t.Find(tenant, name)
}
