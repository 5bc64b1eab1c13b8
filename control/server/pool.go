package server

import (
	"context"
	"net/http"

	"github.com/soulbox-dev/soulbox/control/api"
)

// Pools is what the server needs of the pools; pool.Service is one. Errors are as those of Lifecycle.
type Pools interface {
	// List returns the pools of a tenant; of all where it is empty.
	List(tenant string) ([]api.Pool, error)
	Get(tenant, name string) (api.Pool, error)
	Create(ctx context.Context, tenant, by string, n api.NewPool) (api.Pool, error)
	Change(ctx context.Context, tenant, name string, c api.PoolSpec) (api.Pool, error)
	Delete(ctx context.Context, tenant, name string) error
}

func (s *Server) needPools() error {
	if s.cfg.Pools == nil {
		return api.Errorf(http.StatusNotImplemented, codeUnsupported, "this service has no pools")
	}
	return nil
}

// pools is GET /v1/pools.
func (s *Server) pools(w http.ResponseWriter, r *http.Request) error {
	if err := s.needPools(); err != nil {
		return err
	}
	own, err := s.within(r)
	if err != nil {
		return err
	}
	list, err := s.cfg.Pools.List(own)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, list)
	return nil
}

// createPool is POST /v1/pools.
func (s *Server) createPool(w http.ResponseWriter, r *http.Request) error {
	var req api.NewPool
	if err := firstOf(s.needPools(), s.decodeBody(w, r, maxJSONBytes, false, &req), s.mayShare(r, req.PoolSpec)); err != nil {
		return err
	}
	p, err := s.cfg.Pools.Create(r.Context(), tenant(r), caller(r).User(), req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, p)
	return nil
}

// mayShare refuses a pool for all tenants to who is of one.
func (s *Server) mayShare(r *http.Request, c api.PoolSpec) error {
	if c.Shared == nil || !*c.Shared {
		return nil
	}
	return s.mustEverywhere(r, requestOf(r).access.needs)
}

// pool is GET /v1/pools/{name}.
func (s *Server) pool(w http.ResponseWriter, r *http.Request) error {
	if err := s.needPools(); err != nil {
		return err
	}
	p, err := s.cfg.Pools.Get(tenant(r), r.PathValue("name"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, p)
	return nil
}

// changePool is PATCH /v1/pools/{name}.
func (s *Server) changePool(w http.ResponseWriter, r *http.Request) error {
	var req api.PoolSpec
	if err := firstOf(s.needPools(), s.decodeBody(w, r, maxJSONBytes, false, &req), s.mayShare(r, req)); err != nil {
		return err
	}
	p, err := s.cfg.Pools.Change(r.Context(), tenant(r), r.PathValue("name"), req)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, p)
	return nil
}

// deletePool is DELETE /v1/pools/{name}.
func (s *Server) deletePool(w http.ResponseWriter, r *http.Request) error {
	if err := s.needPools(); err != nil {
		return err
	}
	if err := s.cfg.Pools.Delete(r.Context(), tenant(r), r.PathValue("name")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
