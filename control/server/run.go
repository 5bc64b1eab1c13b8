package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// maxHeaderBytes bounds a request's header. Answered with 431.
const maxHeaderBytes = 64 << 10

// maxStreams bounds the requests that go on at once on one HTTP/2 connection: SDKs hold all their streams on one.
const maxStreams = 1000

// Run serves on the listeners, and what other servers send, until ctx ends, then ends streams at once, hands the leadership over, lets other requests finish for DrainTimeout, and
// returns nil. It closes the listeners. A listener that fails ends all with its error. Run once.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("server: no listener")
	}
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: s.cfg.HeaderTimeout,
		WriteTimeout:      s.cfg.CallTimeout + s.cfg.WriteTimeout, // each write of an answer moves it on
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true) // upgrades need it
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true) // for clients that know: gRPC's, and proxies in front
	srv.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams}
	failed := make(chan error, len(listeners)+1)
	var wg sync.WaitGroup
	others := s.serveOthers(&wg, failed)
	for _, l := range listeners {
		s.log.Info("serving the API", "address", l.Addr().String())
		wg.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.close()
	s.handOver()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	if stopErr := srv.Shutdown(drain); stopErr != nil {
		s.log.Warn("requests were cut off", "error", stopErr)
		err = errors.Join(err, srv.Close())
	}
	if others != nil {
		if stopErr := others.Shutdown(drain); stopErr != nil {
			err = errors.Join(err, others.Close())
		}
	}
	wg.Wait()
	s.streams.wait(s.cfg.DrainTimeout)
	return err
}
