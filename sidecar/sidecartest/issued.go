package sidecartest

import (
	"testing"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// IssuedKey is a data key of generation 3 alone, as it is published.
func IssuedKey(t testing.TB, name string, plaintext []byte) *keystore.DataKey {
	t.Helper()
	return KeyOf(IssuedGeneration(t, name, 3, plaintext))
}

// IssuedGeneration is a generation as it is published, on a lease of an hour.
func IssuedGeneration(t testing.TB, name string, number uint32, plaintext []byte) *keystore.Generation {
	t.Helper()
	p, err := envelope.PlaintextFromBytes(plaintext)
	must(t, err)
	s := keystore.Status{
		Name: name, State: keystore.StateIssued, Generation: number, KeyID: "arn:datakeys:kms:test:team-a:key/1", KeyVersion: 2,
		Algorithm: keystore.AlgorithmAESGCM,
	}
	bound := keystore.RenderBound(map[string]string{"tenant": "a"}, nil)
	return &keystore.Generation{
		Status: s, Number: number, Issued: keystore.NewIssued(s, p, []byte("the blob"), nil, bound, time.Now(), time.Hour),
	}
}

// KeyOf is a data key whose newest generation comes first.
func KeyOf(generations ...*keystore.Generation) *keystore.DataKey {
	return &keystore.DataKey{Generation: generations[0], Generations: generations}
}
