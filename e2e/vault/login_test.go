package vault

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/e2e/binaries"
)

// person is somebody of Vault's identities, at a shell with the program that users install.
type person struct {
	t       *testing.T
	s       *stand
	program string
	env     []string
	token   string // of Vault: the session in the person's browser
	entity  string // of Vault: the subject of ID tokens
}

func (s *stand) person(name, address string) *person {
	s.t.Helper()
	s.ok("write", "auth/userpass/users/"+name, "password=secret", "token_policies=default,oidc-user")
	session, err := s.client().Logical().WriteWithContext(s.t.Context(), "auth/userpass/login/"+name, map[string]any{"password": "secret"})
	must.NoError(s.t, err)
	return &person{
		t: s.t, s: s, program: binaries.Path(s.t, "soulbox"), token: session.Auth.ClientToken, entity: session.Auth.EntityID,
		env: []string{"HOME=" + s.t.TempDir(), "SOULBOX_ADDR=" + address, "PATH=" + os.Getenv("PATH")},
	}
}

func (p *person) run(args ...string) (string, error) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), p.program, args...)
	cmd.Env = p.env
	out, err := cmd.CombinedOutput()
	p.t.Logf("$ soulbox %s\n%s", strings.Join(args, " "), out)
	return string(out), err
}

// login runs "soulbox login" and is the browser: it asks Vault for the code with the person's session, and follows the redirect back.
func (p *person) login() (string, error) {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), p.program, "login", "-no-browser")
	cmd.Env = p.env
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	must.NoError(p.t, err)
	must.NoError(p.t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	var said strings.Builder
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		said.WriteString(line + "\n")
		if u, err := url.Parse(line); err == nil && u.Query().Has("code_challenge") {
			p.browse(u.Query())
		}
	}
	err = cmd.Wait()
	out := stdout.String() + said.String()
	p.t.Logf("$ soulbox login -no-browser\n%s", out)
	return out, err
}

func (p *person) browse(q url.Values) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet,
		p.s.Config.Address()+"/v1/identity/oidc/provider/default/authorize?"+q.Encode(), nil)
	must.NoError(p.t, err)
	req.Header.Set("X-Vault-Token", p.token)
	resp, err := http.DefaultClient.Do(req)
	must.NoError(p.t, err)
	defer resp.Body.Close()
	var answer struct {
		Code  string `json:"code"`
		State string `json:"state"`
	}
	b, err := io.ReadAll(resp.Body)
	must.NoError(p.t, err)
	must.NoError(p.t, json.Unmarshal(b, &answer), must.Sprint(string(b)))
	must.NotEq(p.t, "", answer.Code, must.Sprint(string(b)))
	back, err := http.Get(q.Get("redirect_uri") + "?" + url.Values{"code": {answer.Code}, "state": {answer.State}}.Encode())
	must.NoError(p.t, err)
	must.NoError(p.t, back.Body.Close())
}

// Vault is an issuer of OpenID Connect too. A person logs in there with the program that users install, and has what the groups give.
func TestLogin_peopleOfVaultsOwnIssuer(t *testing.T) {
	s := startVault(t)
	s.ok("auth", "enable", "userpass")
	policy := filepath.Join(t.TempDir(), "oidc.hcl")
	must.NoError(t, os.WriteFile(policy, []byte(`path "identity/oidc/provider/default/authorize" { capabilities = ["read", "update"] }`), 0o600))
	s.ok("policy", "write", "oidc-user", policy)
	s.ok("write", "identity/oidc/scope/groups", `template={"groups": {{identity.entity.groups.names}}, "username": {{identity.entity.name}}}`)
	s.ok("write", "identity/oidc/key/people", "allowed_client_ids=*", "algorithm=ES256")
	s.ok("write", "identity/oidc/client/soulbox", "client_type=public", "key=people", "id_token_ttl=10m", "assignments=allow_all",
		"redirect_uris=http://127.0.0.1/oidc/callback")
	s.ok("write", "identity/oidc/provider/default", "allowed_client_ids=*", "scopes_supported=groups")
	client, _ := s.data("read", "identity/oidc/client/soulbox")
	issuer := s.Config.Address() + "/v1/identity/oidc/provider/default"
	servers, admin := startServers(t, 1, fmt.Sprintf(`
auth {
  oidc "people" {
    issuer       = %q
    client_id    = %q
    scopes       = ["groups"]
    groups_claim = "groups"
    name_claim   = "username"
    grant {
      groups = ["developers"]
      tenant = "default"
      roles  = ["developer"]
    }
  }
}`, issuer, client["client_id"]))
	c := servers[0]

	alice, mallory := s.person("alice", c.Address()), s.person("mallory", c.Address())
	s.ok("write", "identity/group", "name=developers", "member_entity_ids="+alice.entity)

	out, err := alice.login()
	must.NoError(t, err)
	must.StrContains(t, out, "You are oidc:people/"+alice.entity+" at "+c.Address()+", in tenant default")
	out, err = alice.run("auth", "whoami", "-json")
	must.NoError(t, err)
	var who api.Whoami
	must.NoError(t, json.Unmarshal([]byte(out), &who))
	must.Eq(t, []string{"developer"}, who.Roles)
	must.Eq(t, []string{"people/developers"}, who.Groups)
	_, err = alice.run("sandbox", "list")
	must.NoError(t, err)
	_, err = alice.run("tenant", "create", "acme")
	must.Error(t, err, must.Sprint("a developer makes no tenants"))

	// A group may be bound to more, live.
	admins := &person{t: t, s: s, program: alice.program, env: append(alice.env[1:], "HOME="+t.TempDir(), "SOULBOX_API_KEY="+admin)}
	_, err = admins.run("binding", "create", "-role=operator", "-everywhere", "group:people/developers")
	must.NoError(t, err)
	_, err = alice.run("tenant", "list")
	must.NoError(t, err)

	out, err = mallory.login()
	must.Error(t, err, must.Sprint("who is in no group that has a role is in no tenant"))
	must.StrContains(t, out, "the issuer has let you in, the service has not")
	_, err = mallory.run("sandbox", "list")
	must.Error(t, err)

	_, err = alice.run("logout")
	must.NoError(t, err)
	out, err = alice.run("auth", "whoami")
	must.Error(t, err)
	must.StrContains(t, out, "soulbox login")
}
