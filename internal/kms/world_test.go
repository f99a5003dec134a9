package kms_test

import (
	"testing"

	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// world is that of kmstest, whose operations take a token here: see tokens_test.go.
type world struct{ *kmstest.World }

func newWorld(t testing.TB) *world { return &world{kmstest.NewWorld(t)} }

func settled(t testing.TB) *world { return &world{kmstest.Settled(t)} }

func listed(t testing.TB) *world { return &world{kmstest.Listed(t)} }

func replica(t testing.TB, of *world) *world { return &world{of.Replica(t)} }

// clone returns a world of the same surroundings that may have another key service.
func (w *world) clone() *world {
	other := *w.World
	return &world{&other}
}

func serviceOver(t testing.TB, w *world, store kms.KeyStore) *kms.Service {
	return w.ServiceOver(t, store)
}

// Short names of what nearly every test speaks of.
const (
	app, keyUser, allKeys    = kmstest.App, kmstest.KeyUser, kmstest.AllKeys
	reader, nobody, stranger = kmstest.Reader, kmstest.Nobody, kmstest.Stranger
	lister, describer        = kmstest.Lister, kmstest.Describer
	wrapAge                  = kmstest.WrapAge
)

var (
	ordersKey, otherKey, theirsKey, goneID = kmstest.OrdersKey, kmstest.OtherKey, kmstest.TheirsKey, kmstest.GoneID
	begin, terms                           = kmstest.Begin, kmstest.Terms
	object, orders, recordOf               = kmstest.Object, kmstest.Orders, kmstest.RecordOf
	forged, forgedWith, keyID, raw         = kmstest.Forged, kmstest.ForgedWith, kmstest.KeyID, kmstest.Raw
	renewOf                                = kmstest.RenewOf
)
