package kms

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/datakeys/datakeys/internal/envelope"
)

// ForgetGone wipes what was loaded of keys whose MasterKey is gone, is another key or is destroyed. Nobody may use them; what is kept of
// them for a waiting period is loaded again when the MasterKey is back, and what was destroyed meanwhile by another replica is not.
// It is to be called about once a minute, on every replica.
func (s *Service) ForgetGone(ctx context.Context) {
	for _, k := range s.ring.all() {
		o, err := s.objects.ByName(ctx, k.namespace, k.name)
		if errors.Is(err, ErrMasterKeyNotFound) || err == nil && (o.KeyID != k.text || o.State == KeyStateDestroyed) {
			s.ring.forget(k.id)
			s.log.Info("Forgot a master key whose MasterKey is gone", "key", k.text, "namespace", k.namespace, "name", k.name)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// all returns the keys that are loaded.
func (r *keyring) all() []*key {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.keys))
}

// forget wipes a key, and drops it.
func (r *keyring) forget(id envelope.KeyID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[id].forget()
	delete(r.keys, id)
}
