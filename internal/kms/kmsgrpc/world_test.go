package kmsgrpc_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc/kmsgrpctest"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// serve serves the key service of a world until the test ends, and returns a connection to it.
func serve(t testing.TB, w *kmstest.World, register ...func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	return kmsgrpctest.Serve(t, w.Service, w.Log.Logger(), register...).Dial(t)
}

// as returns a context that carries a token.
func as(t testing.TB, token string) context.Context {
	t.Helper()
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
}

// renewMessage is what a sidecar asks of the data key in a blob.
func renewMessage(t testing.TB, blob []byte) *kmsv1.RenewDataKey {
	t.Helper()
	r := kmstest.RenewOf(t, blob)
	return &kmsv1.RenewDataKey{KeyId: r.KeyID, KeyVersion: r.KeyVersion, MaterialId: r.MaterialID, Name: r.Name}
}

// Short names of what nearly every test speaks of.
const (
	app, allKeys, reader = kmstest.App, kmstest.AllKeys, kmstest.Reader
	nobody, stranger     = kmstest.Nobody, kmstest.Stranger
	lister, keyUser      = kmstest.Lister, kmstest.KeyUser
)

var (
	ordersKey, otherKey, goneID = kmstest.OrdersKey, kmstest.OtherKey, kmstest.GoneID
	begin, orders               = kmstest.Begin, kmstest.Orders
)
