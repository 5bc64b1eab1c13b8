package server

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/api/version"
	"github.com/soulbox-dev/soulbox/control/fleet"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// CheckNode refuses a node that this version cannot work with, and says which version it needs. It is for the fleet's
// configuration.
func CheckNode(n nodeapi.Node) error {
	if err := fleet.CheckAPIVersion(n); err != nil {
		return err
	}
	if err := version.Compatible("node "+string(n.ID), n.Version, version.MinNode); err != nil {
		return api.Errorf(http.StatusBadRequest, api.CodeVersion, "%s", err.Error())
	}
	return nil
}
