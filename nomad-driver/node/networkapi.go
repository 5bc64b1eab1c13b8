package node

import (
	"net/http"

	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func (n *Node) getNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	st, err := n.NetworkStatus(id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

func (n *Node) putNetwork(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.Network
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	st, err := n.SetNetwork(id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, st)
	return nil
}

func (n *Node) postNetworkTest(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req nodeapi.NetworkTest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	v, err := n.TestNetwork(id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

func (n *Node) getPublished(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	list, err := n.Published(id)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

func (n *Node) putPublished(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	var req []nodeapi.PublishedPort
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	list, err := n.SetPublished(id, req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}
