package api

// AssignTags is the body of POST /templates/tags.
type AssignTags struct {
	Target string   `json:"target"` // a template's name, with a tag or without
	Tags   []string `json:"tags"`
}

// AssignedTags is the answer of POST /templates/tags.
type AssignedTags struct {
	Tags    []string `json:"tags"`
	BuildID string   `json:"buildID"`
}

// RemoveTags is the body of DELETE /templates/tags.
type RemoveTags struct {
	Name string   `json:"name"`
	Tags []string `json:"tags"`
}

// TemplateUpdate is the body of PATCH /templates/{id} and PATCH /v2/templates/{id}.
type TemplateUpdate struct {
	Public *bool `json:"public,omitempty"`
}

// TemplateNames is the answer of PATCH /v2/templates/{id}: under which names everybody finds the template while it is public.
type TemplateNames struct {
	Names []string `json:"names"`
}
