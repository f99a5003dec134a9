package sidecar

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Run issues the data keys until the context ends. It then stops at once, since the applications of the pod are gone:
// the kubelet ends a native sidecar after them. It returns an error for a configuration that cannot work, and if
// serving fails.
func Run(ctx context.Context, c Config) (err error) {
	if err := c.validate(); err != nil {
		return err
	}
	client, err := NewClient(c.KeyService, c.Roots, c.TokenFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()

	s := newStore(c.DataKeys)
	defer s.close()
	dog := newWatchdog()
	server := newServer(s, c.Logger, dog)
	l, err := listen(ctx, c.Socket, maxConns)
	if err != nil {
		return err
	}
	l.full = func() { dropIdle(server) }

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go dog.run(ctx)
	go func() {
		defer cancel()
		served <- server.Serve(l)
	}()
	c.Logger.Info("serving", "socket", c.Socket, "dataKeys", c.DataKeys, "keyService", c.KeyService)

	newKeeper(c.DataKeys, NewSource(c.KeysDir), client, s, c.Logger).run(ctx)

	// Close comes after Serve has failed on its own, too: it is what removes the socket.
	closeErr := server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("socket %q: %w", c.Socket, err), closeErr)
	}
	c.Logger.Info("stopped")
	return closeErr
}

// dropIdle closes the connections that wait for their next request, so that applications that keep many open do not
// keep others out.
func dropIdle(server *http.Server) {
	server.SetKeepAlivesEnabled(false)
	server.SetKeepAlivesEnabled(true)
}
