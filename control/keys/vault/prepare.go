package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/soulbox-dev/soulbox/control/keys"
)

// Prepare mounts the PKI engine, makes its root, and writes the two roles, each only where it is missing but the roles,
// which it always writes. It needs a token that may do that; Issue does not.
func (i *Issuer) Prepare(ctx context.Context) error {
	client, err := i.session()
	if err != nil {
		return err
	}
	if err := i.prepare(ctx, client); err != nil {
		return fmt.Errorf("prepare vault's %s: %w", i.cfg.Mount, mapError(err))
	}
	return nil
}

func (i *Issuer) prepare(ctx context.Context, client *vaultapi.Client) error {
	mounts, err := client.Sys().ListMountsWithContext(ctx)
	if err != nil {
		return err
	}
	if mounts[i.cfg.Mount+"/"] == nil {
		err := client.Sys().MountWithContext(ctx, i.cfg.Mount, &vaultapi.MountInput{
			Type: "pki", Description: "certificates of SoulBox's servers and nodes",
			Config: vaultapi.MountConfigInput{MaxLeaseTTL: "87600h"},
		})
		if err != nil {
			return err
		}
	}
	issuers, err := client.Logical().ListWithContext(ctx, i.cfg.Mount+"/issuers")
	var resp *vaultapi.ResponseError
	if err != nil && !(errors.As(err, &resp) && resp.StatusCode == http.StatusNotFound) {
		return err
	}
	if issuers == nil || len(issuers.Data) == 0 {
		_, err := client.Logical().WriteWithContext(ctx, i.cfg.Mount+"/root/generate/internal", map[string]any{
			"common_name": "SoulBox CA", "key_type": "ec", "key_bits": 256, "ttl": "87600h",
			"not_before_duration": (2 * keys.Backdate).String(), // or the first certificates would be older than their CA
		})
		if err != nil {
			return err
		}
	}
	for _, role := range []keys.Role{keys.RoleNode, keys.RoleServer} {
		_, err := client.Logical().WriteWithContext(ctx, i.cfg.Mount+"/roles/"+roleName(role), map[string]any{
			"allowed_domains": role.DNSName(), "allow_bare_domains": true, "allow_subdomains": false,
			"allowed_uri_sans": "soulbox://" + string(role) + "/*", "allow_ip_sans": true,
			"server_flag": true, "client_flag": role == keys.RoleServer,
			"key_type": "ec", "key_bits": 256, "key_usage": "DigitalSignature",
			"max_ttl": keys.MaxTTL.String(), "not_before_duration": keys.Backdate.String(),
			// The certificates are short-lived and not revoked one by one: keeping each would only fill the storage.
			"no_store": true, "generate_lease": false,
			// What the caller asks for counts, not what the signing request holds beside it.
			"use_csr_common_name": false, "use_csr_sans": false,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Policy returns the policy, in HCL, that a token needs for Issue of the given roles.
func Policy(mount string, roles ...keys.Role) string {
	if mount == "" {
		mount = DefaultMount
	}
	var b strings.Builder
	for _, r := range roles {
		fmt.Fprintf(&b, "path %q {\n  capabilities = [\"update\"]\n}\n", mount+"/sign/"+roleName(r))
	}
	return b.String()
}
