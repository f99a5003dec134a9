package controllers

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// settled remembers which Secrets hold what they have to, so that they are not read again and again: a Secret that is changed
// has another resourceVersion, which the cache of metadata tells. It may be empty at any time.
type settled struct {
	seed maphash.Seed

	mutex   sync.Mutex
	secrets map[client.ObjectKey]settledSecret
}

// settledSecret is a Secret as it was, and a hash of the entries that it then had to have, and had.
type settledSecret struct {
	uid             types.UID
	resourceVersion string
	hash            uint64
}

func newSettled() *settled {
	return &settled{seed: maphash.MakeSeed(), secrets: map[client.ObjectKey]settledSecret{}}
}

// is reports whether the Secret is the one that was set with these entries.
func (s *settled) is(cached *metav1.PartialObjectMetadata, entries map[string][]byte) bool {
	s.mutex.Lock()
	last, found := s.secrets[client.ObjectKeyFromObject(cached)]
	s.mutex.Unlock()
	return found && last == settledSecret{cached.UID, cached.ResourceVersion, s.hash(entries)}
}

// set says that a Secret, as the API server has it, holds these entries.
func (s *settled) set(stored *corev1.Secret, entries map[string][]byte) {
	hash := s.hash(entries)
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.secrets[client.ObjectKeyFromObject(stored)] = settledSecret{stored.UID, stored.ResourceVersion, hash}
}

func (s *settled) forget(name client.ObjectKey) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.secrets, name)
}

func (s *settled) hash(entries map[string][]byte) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		for _, part := range [][]byte{[]byte(name), entries[name]} {
			maphash.WriteComparable(&h, len(part))
			_, _ = h.Write(part) // it never fails
		}
	}
	return h.Sum64()
}
