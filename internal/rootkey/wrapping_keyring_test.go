package rootkey_test

import (
	"testing"

	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// openBy opens the sealing keys by a root key, or while it takes the place of another.
func openBy(t *testing.T, store seal.Store, uri, previous string) *seal.Keyring {
	t.Helper()
	k, err := seal.Config{RootKey: uri, PreviousRootKey: previous, Store: store, OpenRootKey: rootkey.Open}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func TestSealingKeysWrappedByServices(t *testing.T) {
	_, transit := transitBackend(t)
	backends := []wrappingBackend{transit}
	if _, aws := awsBackend(t); !refusedByFIPS(t, aws) {
		_, alicloud := alicloudBackend(t)
		backends = append(backends, aws, alicloud)
	}
	store := &sealtest.Store{}
	first := openBy(t, store, seal.DefaultRootKey, "")
	previous := seal.DefaultRootKey
	for _, b := range backends {
		openBy(t, store, b.uri, previous)
		settled := openBy(t, store, b.uri, "") // a restart, after which nothing else wraps the sealing keys
		sealtest.SameKeys(t, first, settled)
		if settled.Report().Embedded {
			t.Errorf("%s: the root key is said to be embedded", b.id)
		}

		b.service.Misbehave(rootkeytest.AnyOperation, rootkeytest.Drop)
		if _, err := (seal.Config{RootKey: b.uri, Store: store, OpenRootKey: rootkey.Open}).Open(t.Context()); err == nil {
			t.Errorf("%s: opened while the service was down", b.id)
		}
		sealtest.SameKeys(t, first, settled) // who has started needs the service no more
		b.service.Behave()
		sealtest.SameKeys(t, first, openBy(t, store, b.uri, ""))
		previous = b.uri
	}
}
