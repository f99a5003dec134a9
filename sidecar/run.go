package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba"
	"github.com/datakeys/datakeys/sidecar/aws"
	"github.com/datakeys/datakeys/sidecar/internal/keeper"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
)

// Run issues the data keys until the context ends. It then stops at once, since the applications of the pod are gone:
// the kubelet ends a native sidecar after them. It returns an error for a configuration that cannot work, and if
// serving fails.
func Run(ctx context.Context, c Config) error { return run(ctx, c, newDoors, newWatchdog()) }

// newDoors makes the front doors.
func newDoors(service kmsv1.KeyServiceClient, log *slog.Logger) doors {
	counts := newDoorCounts()
	return doors{
		aws:     aws.New(aws.Config{KeyService: service, Logger: log, Count: counts.of("aws")}),
		alibaba: alibaba.New(alibaba.Config{KeyService: service, Logger: log, Count: counts.of("alibaba")}),
		counts:  counts,
	}
}

func run(ctx context.Context, c Config, newDoors func(kmsv1.KeyServiceClient, *slog.Logger) doors, dog *watchdog) (err error) {
	if err := c.validate(); err != nil {
		return err
	}
	contact := newContact()
	client, err := keyservice.New(c.KeyService, c.Roots, c.TokenFile, contact.intercept)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()

	s := keystore.New(c.DataKeys)
	defer s.Close()
	front := newDoors(client.Doors(), c.Logger)
	front.dog = dog
	ends, err := listenAll(ctx, c, s, &front, contact)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, len(ends))
	go dog.run(ctx)
	for _, e := range ends {
		go func() {
			defer cancel()
			served <- e.serve()
		}()
	}
	c.Logger.Info("serving", "socket", c.Socket, "loopbackPort", c.LoopbackPort, "dataKeys", c.DataKeys, "keyService", c.KeyService)

	keeper.New(c.DataKeys, secrets.NewSource(c.KeysDir), client, s, c.Leases, c.Logger).Run(ctx)

	var errs []error
	for _, e := range ends {
		// Close comes after Serve has failed on its own, too: it is what removes the socket.
		errs = append(errs, e.server.Close())
	}
	for range ends {
		errs = append(errs, <-served)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.Logger.Info("stopped")
	return nil
}

// end is what the sidecar serves on.
type end struct {
	name   string
	server *http.Server
	l      net.Listener
}

// listenAll listens on the socket, and on the loopback port where there is one: first, so that where it is taken nothing is served.
func listenAll(ctx context.Context, c Config, s *keystore.Store, front *doors, contact *contact) (ends []end, err error) {
	if c.LoopbackPort != 0 {
		l, err := listenLoopback(ctx, c.LoopbackPort)
		if err != nil {
			return nil, err
		}
		server := newLoopbackServer(front, c.LoopbackPort, c.Logger)
		ends = append(ends, end{fmt.Sprintf("loopback port %d", c.LoopbackPort), server, l})
	}
	l, err := listen(ctx, c.Socket, maxConns)
	if err != nil {
		for _, e := range ends {
			err = errors.Join(err, e.l.Close())
		}
		return nil, err
	}
	server := newServer(s, c.Logger, front.dog, contact.render, front.counts.render)
	server.Handler = front.beside(server.Handler)
	return append(ends, end{fmt.Sprintf("socket %q", c.Socket), server, l}), nil
}

// serve serves until the server is closed.
func (e end) serve() error {
	if err := e.server.Serve(e.l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", e.name, err)
	}
	return nil
}
