package server

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/lifecycle"
	"github.com/soulbox-dev/soulbox/control/state"
)

// e2bCreateV1 is POST /sandboxes.
func (s *Server) e2bCreateV1(w http.ResponseWriter, r *http.Request) error {
	return s.e2bCreate(w, r, 1)
}

// e2bCreateV2 is POST /v2/sandboxes.
func (s *Server) e2bCreateV2(w http.ResponseWriter, r *http.Request) error {
	return s.e2bCreate(w, r, 2)
}

// e2bCreate is the two versions of create: they differ in the default timeout, and in who asks for a token.
func (s *Server) e2bCreate(w http.ResponseWriter, r *http.Request, version int) error {
	var req api.NewSandbox
	if err := s.decodeBody(w, r, maxJSONBytes, false, &req); err != nil {
		return err
	}
	defaultTimeout := int64(api.DefaultTimeoutSeconds)
	secured := true
	if version == 1 {
		defaultTimeout, secured = api.DefaultTimeoutV1Seconds, req.Secure != nil && *req.Secure
	}
	p, err := e2bParams(req, defaultTimeout, secured)
	if err != nil {
		return err
	}
	p.Caller = caller(r)
	if err := s.mayCreate(r, p); err != nil {
		return err
	}
	if req.Network != nil {
		if err := s.mayUseSecrets(r, req.Network.Rules); err != nil {
			return err
		}
	}
	sb, steps, err := s.cfg.Lifecycle.Create(r.Context(), p)
	if err != nil {
		return err
	}
	requestOf(r).object = string(sb.ID)
	out := e2bAccess(sb)
	if req.SoulBox != nil {
		out.SoulBox = createdView(sb, steps)
	}
	writeJSON(w, http.StatusCreated, out)
	return nil
}

// e2bParams checks a create of the contract and translates it.
func e2bParams(req api.NewSandbox, defaultTimeout int64, secured bool) (lifecycle.CreateParams, error) {
	var p lifecycle.CreateParams
	if req.TemplateID == "" {
		return p, invalid("templateID is missing")
	}
	if req.Timeout == nil && req.SoulBox != nil {
		defaultTimeout = 0 // the service's own
	}
	low := min(1, defaultTimeout)
	if req.Timeout != nil {
		low = 1
	}
	timeout, err := e2bSeconds("timeout", req.Timeout, defaultTimeout, low, math.MaxInt32)
	if err != nil {
		return p, err
	}
	if err := e2bRefuse(req); err != nil {
		return p, err
	}
	p = lifecycle.CreateParams{
		Template: req.TemplateID, Timeout: timeout, Metadata: req.Metadata, EnvVars: req.EnvVars,
		Lifecycle:           e2bLifecycle(req),
		AllowInternetAccess: req.AllowInternetAccess,
	}
	if req.SoulBox != nil {
		if err := createOptions(*req.SoulBox, &p); err != nil {
			return p, err
		}
	}
	p.Open = !secured
	if req.Network != nil {
		p.PrivateTraffic = req.Network.AllowPublicTraffic != nil && !*req.Network.AllowPublicTraffic
		if p.PrivateTraffic && p.Open {
			return p, invalid("network.allowPublicTraffic is false, which needs secure")
		}
		if p.Network, err = json.Marshal(req.Network); err != nil {
			return p, invalid("network: %s", err)
		}
	}
	return p, nil
}

func e2bLifecycle(req api.NewSandbox) state.Lifecycle {
	l := state.Lifecycle{OnTimeout: state.OnTimeoutKill, AutoResume: req.AutoResume != nil && *req.AutoResume.Enabled}
	if req.AutoPause {
		l.OnTimeout = state.OnTimeoutPause
		l.FilesOnly = req.AutoPauseMemory != nil && !*req.AutoPauseMemory
	}
	return l
}

// e2bSeconds returns a number of seconds between low and high, or def where there is none.
func e2bSeconds(field string, v *int64, def, low, high int64) (time.Duration, error) {
	if v == nil {
		v = &def
	}
	if *v < low || *v > high {
		return 0, invalid("%s is %d, %d to %d seconds are allowed", field, *v, low, high)
	}
	return time.Duration(*v) * time.Second, nil
}

// e2bRefuse refuses what breaks the contract's rules, and what this version would have to ignore where the user would take it
// for granted. Network settings are kept with the sandbox: it has its loopback only, so nothing that they forbid is possible.
func e2bRefuse(req api.NewSandbox) error {
	switch {
	case req.AutoResume != nil && req.AutoResume.Enabled == nil:
		return invalid("autoResume.enabled is missing")
	case req.AutoPauseMemory != nil && !*req.AutoPauseMemory && !req.AutoPause:
		return invalid("autoPauseMemory is false, which only goes with autoPause")
	case req.AutoPauseMemory != nil && !*req.AutoPauseMemory && req.AutoResume != nil && *req.AutoResume.Enabled:
		return invalid("autoPauseMemory is false, which excludes autoResume")
	case given(req.MCP) && req.MCP[0] != '{':
		return invalid("mcp is not a JSON object") // what is in it is for the gateway, which the client itself starts
	case req.IAM != nil && len(req.IAM.Tokens) > 0:
		return unsupported("iam", "no tokens are issued to sandboxes yet")
	case len(req.VolumeMounts) > 0:
		return unsupported("volumeMounts", "there are no volumes yet")
	case req.Network == nil:
		return nil
	}
	return checkNetwork(*req.Network)
}

// given reports whether a field was sent, and not as null.
func given(raw json.RawMessage) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}
