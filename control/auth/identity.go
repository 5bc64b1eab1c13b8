package auth

// Identity is who makes a request, once its key is verified.
type Identity struct {
	KeyID  string
	Tenant string
	Name   string // of the key
}
