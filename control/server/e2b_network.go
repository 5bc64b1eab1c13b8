package server

import (
	"encoding/json"
	"net"
	"net/http"
	"strings"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/network/policy"
)

// Limits of the contract's network settings.
const (
	maxRuleDomains = 10
	maxRuleHeaders = 20
	maxRuleName    = 64
	maxRuleValue   = 2048
	maxProxyField  = 255
)

// e2bNetwork is PUT /sandboxes/{id}/network. The settings are replaced as a whole; what is left out is none. They are kept
// with the sandbox.
func (s *Server) e2bNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := sandboxID(r)
	if err != nil {
		return err
	}
	var req api.NetworkUpdate
	if err := s.decodeBody(w, r, maxJSONBytes, true, &req); err != nil {
		return err
	}
	n := api.NetworkConfig{AllowOut: req.AllowOut, DenyOut: req.DenyOut, EgressProxy: req.EgressProxy, Rules: req.Rules}
	if err := firstOf(checkNetwork(n), s.mayUseSecrets(r, n.Rules)); err != nil {
		return err
	}
	if _, err := s.cfg.Lifecycle.SetNetwork(r.Context(), tenant(r), id, n, req.AllowInternetAccess); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// checkNetwork checks network settings against the contract's rules.
func checkNetwork(n api.NetworkConfig) error {
	if err := policy.CheckE2B(n.AllowOut, n.DenyOut); err != nil {
		return invalid("%s", err)
	}
	for _, p := range n.HTTPSPorts {
		if p < 1 || p > 65535 {
			return invalid("network.httpsPorts: %d is no port", p)
		}
	}
	if len(n.MaskRequestHost) > 255 || strings.ContainsAny(n.MaskRequestHost, " /\\\r\n\t@?#\x00") {
		return invalid("network.maskRequestHost: %.80q is no host name", n.MaskRequestHost)
	}
	if err := checkEgressProxy(n.EgressProxy); err != nil {
		return err
	}
	return checkRules(n.Rules)
}

func checkEgressProxy(raw json.RawMessage) error {
	if !given(raw) {
		return nil
	}
	var p struct {
		Address  string `json:"address"`
		Username string `json:"username"`
		Password string `json:"password"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return invalid("network.egressProxy: %s", err)
	}
	if _, _, err := net.SplitHostPort(p.Address); err != nil {
		return invalid("network.egressProxy.address: %.80q is not host:port", p.Address)
	}
	if len(p.Username) > maxProxyField || len(p.Password) > maxProxyField {
		return invalid("network.egressProxy: username and password have at most %d bytes each", maxProxyField)
	}
	return nil
}

func checkRules(raw json.RawMessage) error {
	if !given(raw) {
		return nil
	}
	var rules map[string][]struct {
		Transform struct {
			Headers map[string]string `json:"headers"`
		} `json:"transform"`
	}
	if err := json.Unmarshal(raw, &rules); err != nil {
		return invalid("network.rules: %s", err)
	}
	if len(rules) > maxRuleDomains {
		return invalid("network.rules: %d domains, at most %d", len(rules), maxRuleDomains)
	}
	for domain, list := range rules {
		if e, err := policy.ParseEntry(domain); err != nil || e.Name == "" || strings.Contains(domain, ":") {
			return invalid("network.rules: %.80q is no domain", domain)
		}
		if len(list) > 1 {
			return invalid("network.rules: %s has %d transforms, at most 1", domain, len(list))
		}
		for _, rule := range list {
			if len(rule.Transform.Headers) > maxRuleHeaders {
				return invalid("network.rules: %s sets %d headers, at most %d", domain, len(rule.Transform.Headers), maxRuleHeaders)
			}
			for k, v := range rule.Transform.Headers {
				if k == "" || len(k) > maxRuleName || !headerNames(k) || strings.ContainsAny(k, ", ") {
					return invalid("network.rules: %.80q is no name of a header of at most %d bytes", k, maxRuleName)
				}
				if len(v) > maxRuleValue || strings.ContainsAny(v, "\r\n\x00") {
					return invalid("network.rules: the value of %s is longer than %d bytes or has a line break", k, maxRuleValue)
				}
			}
		}
	}
	return nil
}
