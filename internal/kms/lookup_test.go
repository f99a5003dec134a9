package kms

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// BenchmarkLookup finds the version that made a blob in a key of 1 and of 1000 versions: the same time.
func BenchmarkLookup(b *testing.B) {
	for _, versions := range []uint32{1, 1000} {
		store := &sealtest.Store{}
		sealer, err := sealtest.OpenEmbedded(b.Context(), store)
		if err != nil {
			b.Fatal(err)
		}
		id := envelope.NewKeyID()
		secret := seal.Secret{Name: id.String(), Type: string(v1alpha1.SecretTypeMasterKey), Data: map[string][]byte{}}
		size := 0
		for v := uint32(1); v <= versions; v++ {
			sealed, err := sealer.Seal(seal.MasterKeyVersion{KeyID: id, Namespace: "team-a", Name: "orders", Version: v},
				envelope.NewMaterialID(), envelope.NewMaterial())
			if err != nil {
				b.Fatal(err)
			}
			secret.Data[seal.VersionEntry(v)] = sealed
			secret.Data[seal.VersionEntry(v)+createdAtSuffix] = []byte(time.Unix(0, 0).UTC().Format(time.RFC3339))
			size += len(sealed) + len(time.RFC3339)
		}
		secret, err = record{
			Primary: versions, PrimarySince: time.Unix(0, 0).UTC(), WaitingPeriod: duration(v1alpha1.DefaultWaitingPeriod),
		}.in(secret)
		if err != nil {
			b.Fatal(err)
		}
		store.Put(secret)
		ring := newKeyring(sealer, store, clock.RealClock{})

		b.Run(fmt.Sprintf("load/%d", versions), func(b *testing.B) {
			for b.Loop() {
				if _, err := ring.read(b.Context(), id); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(size), "Secret-bytes")
		})
		k, err := ring.read(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		var headers []envelope.Header
		for _, v := range k.versions {
			headers = append(headers, k.header(v, envelope.KindAWS, envelope.Scope{}))
		}
		b.Run(fmt.Sprintf("find/%d", versions), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := ring.getFor(b.Context(), headers[i%len(headers)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
