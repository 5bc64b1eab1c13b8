package lifecycle

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
)

// Limits of a create request beyond those of package state.
const (
	minCPUMillis = 10
	minMemoryMB  = 16
	maxHostname  = 63
	maxPathBytes = 4096
	maxUserBytes = 64
)

// validate checks p and fills in the defaults.
func (s *Service) validate(p *CreateParams) error {
	orDefault(&p.Timeout, s.cfg.DefaultTimeout)
	orDefault(&p.CPUMillis, s.cfg.DefaultCPUMillis)
	orDefault(&p.MemoryMB, s.cfg.DefaultMemoryMB)
	if mb := p.Limits.DiskBytes >> 20; mb > 0 {
		p.DiskMB = mb
	}
	orDefault(&p.DiskMB, s.cfg.DefaultDiskMB)
	orDefault(&p.Lifecycle.OnTimeout, state.OnTimeoutKill)
	if p.Caller.Tenant == "" {
		return errors.New("create without a tenant")
	}
	if p.ID != "" {
		if id, err := api.ParseSandboxID(string(p.ID)); err != nil || id != p.ID {
			return invalid("sandbox id %.40q is not \"i\" and 20 characters of [a-z0-9]", p.ID)
		}
	}
	if p.Template == "" {
		return invalid("templateID is missing")
	}
	if len(p.Template) > state.MaxTemplateName || !plain(p.Template) {
		return invalid("templateID is not 1 to %d printable characters", state.MaxTemplateName)
	}
	if err := s.boundTimeout(p.Caller.Tenant, p.Timeout); err != nil {
		return err
	}
	if p.Timeout == 0 {
		return invalid("timeout must be greater than 0 seconds")
	}
	for _, l := range []struct {
		name           string
		got, low, high int64
	}{
		{"cpuMillis", p.CPUMillis, minCPUMillis, s.cfg.MaxCPUMillis},
		{"memoryMB", p.MemoryMB, minMemoryMB, s.cfg.MaxMemoryMB},
		{"diskMB", p.DiskMB, 1, s.cfg.MaxDiskMB},
	} {
		if l.got < l.low || l.got > l.high {
			return invalid("%s is %d, %d to %d are allowed", l.name, l.got, l.low, l.high)
		}
	}
	if err := s.checkLimits(p.Limits, false); err != nil {
		return err
	}
	if p.Lifecycle.OnTimeout != state.OnTimeoutKill && p.Lifecycle.OnTimeout != state.OnTimeoutPause {
		return invalid("lifecycle.onTimeout %.20q is neither %s nor %s", p.Lifecycle.OnTimeout, state.OnTimeoutKill, state.OnTimeoutPause)
	}
	if err := checkInside(p); err != nil {
		return err
	}
	return firstLimit(state.CheckMetadata(p.Metadata), state.CheckEnv(p.EnvVars), state.CheckNetwork(p.Network))
}

// checkInside checks what the node and PID 1 are told.
func checkInside(p *CreateParams) error {
	if len(p.Hostname) > maxHostname || strings.ContainsFunc(p.Hostname, notHostname) {
		return invalid("hostname %.80q is not at most %d of [A-Za-z0-9.-]", p.Hostname, maxHostname)
	}
	if len(p.User) > maxUserBytes || !plain(p.User) {
		return invalid("user is not at most %d printable characters", maxUserBytes)
	}
	if len(p.Cwd) > maxPathBytes || strings.ContainsRune(p.Cwd, 0) {
		return invalid("cwd is longer than %d bytes, or has a NUL byte", maxPathBytes)
	}
	switch p.Profile {
	case "", "default", "strict":
	default:
		return invalid("profile %.40q is neither default nor strict", p.Profile)
	}
	switch p.QoS {
	case "", api.QoSGuaranteed, api.QoSBurstable, api.QoSBestEffort:
	default:
		return invalid("qos %.40q is none of %s, %s, %s", p.QoS, api.QoSGuaranteed, api.QoSBurstable, api.QoSBestEffort)
	}
	if p.Main == nil {
		return nil
	}
	if len(p.Main.Argv) == 0 || p.Main.Argv[0] == "" {
		return invalid("command is empty")
	}
	n := 0
	for _, a := range append(append([]string{}, p.Main.Argv...), p.Main.Env...) {
		if strings.ContainsRune(a, 0) {
			return invalid("command has a NUL byte in an argument or its environment")
		}
		n += len(a)
	}
	if len(p.Main.Argv) > guest.MaxArgs || len(p.Main.Env) > guest.MaxArgs || n > guest.MaxArgBytes {
		return invalid("command has more than %d arguments or variables, or more than %d bytes of them", guest.MaxArgs, guest.MaxArgBytes)
	}
	return nil
}

// checkTimeout checks a time from now to a deadline.
func (s *Service) checkTimeout(d time.Duration) error {
	if d < 0 {
		return invalid("timeout is negative")
	}
	if d > s.cfg.MaxLifetime {
		return invalid("Timeout cannot be greater than %s", hours(s.cfg.MaxLifetime))
	}
	return nil
}

func hours(d time.Duration) string {
	h := d.Hours()
	if h == math.Trunc(h) {
		return fmt.Sprintf("%.0f hours", h)
	}
	return fmt.Sprintf("%.2f hours", h)
}

// plain reports whether s is UTF-8 without control characters.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func notHostname(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.'
}

func firstLimit(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return invalid("%s", err.Error())
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return api.Errorf(http.StatusBadRequest, api.CodeInvalid, format, args...)
}
