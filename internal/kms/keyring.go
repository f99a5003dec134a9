package kms

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

const (
	// primaryAge is for how long a loaded key counts as fresh enough to make data keys for callers: a new primary version
	// is used by every replica after that, and material that is gone from the cluster is used no longer.
	primaryAge = 10 * time.Second
	// loadTimeout is how long one load of a key may take. Those who wait for it may give up sooner.
	loadTimeout = 10 * time.Second
	// missAge is for how long a key or version that was looked for and not found is not looked for again.
	missAge = 2 * time.Second
	// maxMisses is how many of them are remembered, about 100 bytes each.
	maxMisses = 4096
)

// key is the unsealed material of a master key as it lay in its Secret at one moment. It never changes once the keyring has it.
type key struct {
	id envelope.KeyID
	// text is the ID, and arn the full name.
	text, arn string
	// namespace and name are those of the MasterKey that the material belongs to, authenticated.
	namespace, name string
	versions        map[uint32]*version
	newest          uint32
	// record is the zero record where the Secret has none that can be read: there is no primary version then.
	record record
	// lost are versions that an earlier load had and the Secret has no more. They open what they wrapped, and do nothing else.
	lost map[uint32]*version
	// damage is what is wrong with the Secret, although versions of it open; else nil.
	damage   error
	loadedAt time.Time
	turn     uint64
}

// destroyed reports whether nothing is left of a key but its record.
func (k *key) destroyed() bool { return k.record.Destroyed != nil && len(k.versions) == 0 }

// version is one version of a master key.
type version struct {
	number     uint32
	materialID envelope.MaterialID
	material   envelope.Material
	createdAt  time.Time
	sealed     []byte // as in the Secret
}

// header is what the header of a blob under this version begins with.
func (k *key) header(v *version, kind envelope.Kind, scope envelope.Scope) envelope.Header {
	return envelope.Header{Kind: kind, KeyID: k.id, KeyVersion: v.number, MaterialID: v.materialID, Scope: scope}
}

// find returns the version that made a blob, or nil.
func (k *key) find(h envelope.Header) *version {
	v := k.versions[h.KeyVersion]
	if v == nil || v.materialID != h.MaterialID {
		return nil
	}
	return v
}

// findToOpen is find, and knows the versions that only this process still has.
func (k *key) findToOpen(h envelope.Header) *version {
	if v := k.find(h); v != nil {
		return v
	}
	if v := k.lost[h.KeyVersion]; v != nil && v.materialID == h.MaterialID {
		return v
	}
	return nil
}

// keep takes over the versions of an earlier load that this one lacks: while the Secret is being restored, the pods that run go
// on, as they do where all of it is gone.
func (k *key) keep(earlier *key) {
	if earlier == nil || k.destroyed() || earlier.namespace != k.namespace || earlier.name != k.name {
		return
	}
	for _, versions := range []map[uint32]*version{earlier.lost, earlier.versions} {
		for number, v := range versions {
			if now := k.versions[number]; now != nil && now.materialID == v.materialID {
				continue
			}
			if k.lost == nil {
				k.lost = map[uint32]*version{}
			}
			k.lost[number] = v
		}
	}
}

// forget wipes what was loaded of a key: nothing opens by it any more.
func (k *key) forget() {
	if k == nil {
		return
	}
	for _, versions := range []map[uint32]*version{k.lost, k.versions} {
		for _, v := range versions {
			v.material.Destroy()
		}
	}
}

// primaryVersion returns the version that wraps new data keys.
func (k *key) primaryVersion() (*version, error) {
	v := k.versions[k.record.Primary]
	if v == nil {
		return nil, k.damage
	}
	return v, nil
}

// keyring holds the keys that were asked for since the start. A key is loaded when it is first asked for, once for all
// who ask at that moment; nobody waits for another key. What was loaded is kept: the material of a version does not
// change, and a restart of the API server does not stop a key service.
type keyring struct {
	seal  *seal.Keyring
	store KeyStore
	clock clock.PassiveClock

	mu   sync.RWMutex // held for map accesses only
	keys map[envelope.KeyID]*key

	turns   atomic.Uint64 // numbers the loads, so that a slow old one does not replace a newer
	flights singleflight.Group
	misses  misses
}

func newKeyring(s *seal.Keyring, store KeyStore, c clock.PassiveClock) *keyring {
	return &keyring{
		seal:   s,
		store:  store,
		clock:  c,
		keys:   map[envelope.KeyID]*key{},
		misses: misses{seen: map[miss]finding{}},
	}
}

// known returns a key that was loaded before, or nil. One that is destroyed is not known any more.
func (r *keyring) known(id envelope.KeyID) *key {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if k := r.keys[id]; k != nil && !k.destroyed() {
		return k
	}
	return nil
}

// get returns a key, and loads it where it is not known. The error is ErrMaterialMissing, ErrMaterialBroken, or one that
// may pass.
func (r *keyring) get(ctx context.Context, id envelope.KeyID) (*key, error) {
	if k := r.known(id); k != nil {
		return k, nil
	}
	return r.look(ctx, miss{keyID: id}, func(*key) bool { return true })
}

// getFor returns the key and the version that made a blob with this header, and looks again where the version is not
// known. The errors are those of get; ErrMaterialMissing also stands for a version that does not exist.
func (r *keyring) getFor(ctx context.Context, h envelope.Header) (*version, error) {
	if k := r.known(h.KeyID); k != nil {
		if v := k.findToOpen(h); v != nil {
			return v, nil
		}
	}
	k, err := r.look(ctx, miss{h.KeyID, h.KeyVersion, h.MaterialID}, func(k *key) bool { return k.findToOpen(h) != nil })
	if errors.Is(err, ErrMaterialMissing) {
		if k := r.known(h.KeyID); k != nil && k.damage != nil {
			return nil, k.damage // it may be that version
		}
	}
	if err != nil {
		return nil, err
	}
	return k.findToOpen(h), nil
}

// getPrimary returns a key as it was at most primaryAge ago, for making data keys. The errors are those of get.
func (r *keyring) getPrimary(ctx context.Context, id envelope.KeyID) (*key, error) {
	if k := r.known(id); k != nil && r.clock.Since(k.loadedAt) < primaryAge {
		return k, nil
	}
	return r.look(ctx, miss{keyID: id}, func(*key) bool { return true })
}

// look loads a key and returns it if it is as wanted. Only a load that began after the call may say that it is not.
func (r *keyring) look(ctx context.Context, m miss, wanted func(*key) bool) (*key, error) {
	if err := r.misses.recent(m, r.clock.Now()); err != nil {
		return nil, err
	}
	load := func() (k *key, shared bool, err error) {
		k, shared, err = r.load(ctx, m.keyID)
		if err == nil && !wanted(k) {
			k, err = nil, ErrMaterialMissing
		}
		return k, shared, err
	}
	k, shared, err := load()
	if shared && errors.Is(err, ErrMaterialMissing) {
		// The others' load may have begun before the material was made; the next begins after this call.
		k, _, err = load()
	}
	if absent(err) {
		r.misses.add(m, err, r.clock.Now())
	}
	return k, err
}

// load loads a key, together with all who ask for it at this moment; shared says that there were others.
func (r *keyring) load(ctx context.Context, id envelope.KeyID) (k *key, shared bool, err error) {
	done := r.flights.DoChan(string(id[:]), func() (any, error) {
		// Whoever asked first may go away; the others still wait.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		return r.read(ctx, id)
	})
	select {
	case result := <-done:
		if result.Err != nil {
			return nil, result.Shared, result.Err
		}
		return result.Val.(*key), result.Shared, nil
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}

// read reads a key's Secret now, opens what is in it and keeps the result. Every call reads for itself.
func (r *keyring) read(ctx context.Context, id envelope.KeyID) (*key, error) {
	k, _, err := r.readSecret(ctx, id)
	return k, err
}

// readSecret is read, and returns the Secret too. Beside ErrMaterialDestroyed come the Secret and what it says of the key.
func (r *keyring) readSecret(ctx context.Context, id envelope.KeyID) (k *key, s seal.Secret, err error) {
	defer func() {
		if p := recover(); p != nil { // in a goroutine of singleflight, where it would end the process
			k, err = nil, PanicError(p)
		}
	}()
	turn, now := r.turns.Add(1), r.clock.Now()
	s, err = r.store.Get(ctx, id.String())
	if errors.Is(err, seal.ErrSecretNotFound) {
		// A key that is known stays known: the pods that run go on while the Secret is being restored.
		return nil, s, ErrMaterialMissing
	}
	if err != nil {
		return nil, s, fmt.Errorf("reading the material of key %s: %w", id, err)
	}
	k, err = unsealKey(ctx, r.seal, id, s, r.known(id))
	if err != nil {
		return nil, s, err
	}
	k.text = id.String()
	k.arn = keyARN(r.seal.InstallID(), k.namespace, k.text)
	k.loadedAt, k.turn = now, turn

	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.keys[id]; old == nil || old.turn < turn {
		if k.destroyed() {
			old.forget()
		}
		k.keep(old)
		r.keys[id] = k
	}
	if d := k.record.Destroyed; k.destroyed() {
		return k, s, fmt.Errorf("%w: %d versions of key %s, of MasterKey %s/%s, at %s: nothing but a backup of Secret %s has them",
			ErrMaterialDestroyed, d.Versions, k.text, d.Namespace, d.Name, d.At.Format(time.RFC3339), s.Name)
	}
	return k, s, nil
}
