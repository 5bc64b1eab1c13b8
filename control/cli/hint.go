package cli

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/login"
	"github.com/soulbox-dev/soulbox/control/cli/settings"
)

// hint says what to do about err, or nothing.
func hint(c *connection, err error) string {
	if errors.Is(err, api.ErrUnreachable) {
		addr := "the service"
		if c != nil && c.api != nil {
			addr = c.api.Address()
		}
		return fmt.Sprintf("Is the server running at %s? `%s dev` starts one on this machine. If it is elsewhere, say where with\n"+
			"-address, %s or `%s config set address <addr>`.", addr, Name, settings.EnvAddress, Name)
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Sprintf("Another program has that address, perhaps another `%s dev`. -listen takes another one.", Name)
	}
	if errors.Is(err, login.ErrEnded) {
		return fmt.Sprintf("`%s login` logs you in again, `%s logout` forgets the login.", Name, Name)
	}
	var e *api.Error
	if !errors.As(err, &e) {
		return ""
	}
	switch {
	case e.Code == http.StatusUnauthorized && (c == nil || c.key.Value == ""):
		return fmt.Sprintf("There is no API key. Set %s, or `%s config set api_key <key>`, or log in: `%s login`.\nA server prints its first key at its first start.",
			settings.EnvAPIKey, Name, Name)
	case e.Code == http.StatusUnauthorized && c.key.Source == loginSource:
		return fmt.Sprintf("You are logged in, but the service does not take it any more: `%s login` logs you in again.", Name)
	case e.Code == http.StatusUnauthorized:
		return fmt.Sprintf("The API key in use, %s, comes from: %s. Is it a key of this server?", c.key.Show(c.key.Value), c.key.Source)
	case e.ErrorCode == api.CodeUnknownTemplate:
		return fmt.Sprintf("`%s template list` shows those that exist, `%s template import NAME SOURCE` adds one.", Name, Name)
	case e.ErrorCode == api.CodeNotRunning:
		return fmt.Sprintf("`%s sandbox info ID` says why it does not run.", Name)
	case e.ErrorCode == api.CodeVersion:
		return fmt.Sprintf("`%s version` shows the versions on both sides.", Name)
	case e.ErrorCode == api.CodeCapacity:
		return fmt.Sprintf("`%s sandbox list` shows what runs; `%s sandbox destroy ID` makes room.", Name, Name)
	case e.ErrorCode == api.CodeNoSpace:
		return "A disk is full: that of the machine or the sandbox's own."
	}
	return ""
}
