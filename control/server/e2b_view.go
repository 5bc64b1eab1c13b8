package server

import (
	"strings"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

const (
	// envdVersion is what clients of the contract judge a sandbox's abilities by; from 0.6.4 on they refuse nothing.
	envdVersion = "0.6.13"
	// clientID is required by the contract and means nothing any more. Old clients append it to the sandbox id.
	clientID = "soulbox"
)

// e2bVisible reports whether the contract has a word for a sandbox in state st.
func e2bVisible(st state.SandboxState) bool { return st == state.Running || st == state.Paused }

func e2bAccess(sb state.Sandbox) api.SandboxAccess {
	a := api.SandboxAccess{
		TemplateID: templateID(sb), SandboxID: sb.ID, ClientID: clientID, EnvdVersion: envdVersion, Alias: alias(sb),
		EnvdAccessToken: sb.EnvdToken,
	}
	if sb.TrafficToken != "" {
		a.TrafficAccessToken = &sb.TrafficToken
	}
	return a
}

func e2bListed(sb state.Sandbox) api.ListedSandbox {
	return api.ListedSandbox{
		TemplateID: templateID(sb), Alias: alias(sb), SandboxID: sb.ID, ClientID: clientID,
		StartedAt: startOf(sb), EndAt: sb.EndAt.UTC(),
		CPUCount: sb.CPUCount(), MemoryMB: sb.MemoryMB, DiskSizeMB: sb.DiskMB,
		Metadata: sb.Metadata, State: string(sb.State), EnvdVersion: envdVersion,
	}
}

func e2bDetail(sb state.Sandbox) api.SandboxDetail {
	onTimeout := sb.Lifecycle.OnTimeout
	if onTimeout == "" {
		onTimeout = state.OnTimeoutKill
	}
	return api.SandboxDetail{
		ListedSandbox:       e2bListed(sb),
		EnvdAccessToken:     sb.EnvdToken,
		AllowInternetAccess: sb.AllowInternetAccess,
		Network:             sb.Network,
		Lifecycle:           api.LifecycleDetail{AutoResume: sb.Lifecycle.AutoResume, OnTimeout: string(onTimeout)},
	}
}

// templateID is the id of the template, or of the snapshot.
func templateID(sb state.Sandbox) string {
	if sb.TemplateID == "" {
		return sb.Template
	}
	return sb.TemplateID
}

// alias is the template's name, or the snapshot's.
func alias(sb state.Sandbox) string {
	if sb.TemplateID != "" {
		return sb.Alias
	}
	if strings.HasPrefix(sb.Template, "sha256:") {
		return ""
	}
	return sb.Template
}

// startOf returns when a sandbox ran first, or was asked for where it has not run.
func startOf(sb state.Sandbox) time.Time {
	if sb.StartedAt.IsZero() {
		return sb.CreatedAt.UTC()
	}
	return sb.StartedAt.UTC()
}
