package sealtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// ErrDown is what a root key answers whose service is down.
var ErrDown = errors.New("sealtest: the root key's service is down")

// Methods of a root key.
const (
	Open   = "Open"
	Wrap   = "Wrap"
	Unwrap = "Unwrap"
)

// RootKeys are the root keys of a service outside of the cluster, in memory: fake://NAME, each made when it is first opened.
// The zero RootKeys is ready; it is safe for concurrent use.
type RootKeys struct {
	// Hook, if set, is asked before each call of a root key's Open, Wrap and Unwrap, with its URI. It may block.
	Hook func(ctx context.Context, method, uri string) error

	mu    sync.Mutex
	keys  map[string]*fakeKey
	calls int
}

// fakeKey is a key with versions, as a KMS rotates it: what an old version wrapped still unwraps, and is stale.
type fakeKey struct {
	id       envelope.KeyID
	material envelope.Material
	version  uint32
	lies     bool
}

// Open opens a root key, as seal.Config.OpenRootKey.
func (r *RootKeys) Open(ctx context.Context, uri string, _ logr.Logger) (seal.RootKey, error) {
	root := &fakeRoot{keys: r, uri: uri}
	if err := root.call(ctx, Open); err != nil {
		return nil, err // and no root key that was not opened
	}
	return root, nil
}

// OpenQuietly opens a root key whose calls the Hook is not asked about and nobody counts.
func (r *RootKeys) OpenQuietly(_ context.Context, uri string, _ logr.Logger) (seal.RootKey, error) {
	return &fakeRoot{keys: r, uri: uri, quiet: true}, nil
}

// Calls returns how often root keys were asked so far.
func (r *RootKeys) Calls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// Rotate makes what the root key has wrapped so far stale.
func (r *RootKeys) Rotate(uri string) { r.change(uri, func(k *fakeKey) { k.version++ }) }

// Lie makes the root key return something else than it was given to wrap, from now on.
func (r *RootKeys) Lie(uri string) { r.change(uri, func(k *fakeKey) { k.lies = true }) }

// Lose replaces the root key by another one of its name.
func (r *RootKeys) Lose(uri string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.keys, uri)
}

func (r *RootKeys) change(uri string, change func(*fakeKey)) {
	k := r.key(uri)
	r.mu.Lock()
	defer r.mu.Unlock()
	change(k)
}

func (r *RootKeys) key(uri string) *fakeKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		r.keys = map[string]*fakeKey{}
	}
	if r.keys[uri] == nil {
		r.keys[uri] = &fakeKey{id: envelope.NewKeyID(), material: envelope.NewMaterial(), version: 1}
	}
	return r.keys[uri]
}

type fakeRoot struct {
	keys  *RootKeys
	uri   string
	quiet bool
}

var (
	_ seal.Staler    = (*fakeRoot)(nil)
	_ seal.KeyTeller = (*fakeRoot)(nil)
)

func (f *fakeRoot) call(ctx context.Context, method string) error {
	if f.quiet {
		return ctx.Err()
	}
	f.keys.mu.Lock()
	f.keys.calls++
	f.keys.mu.Unlock()
	if f.keys.Hook != nil {
		if err := f.keys.Hook(ctx, method, f.uri); err != nil {
			return fmt.Errorf("%s: %w", f.uri, err)
		}
	}
	return ctx.Err()
}

func (f *fakeRoot) ID() string { return f.uri }

func (f *fakeRoot) Close() error { return nil }

func (f *fakeRoot) header(version uint32) envelope.Header {
	k := f.keys.key(f.uri)
	return envelope.Header{Kind: envelope.KindSealingKey, KeyID: k.id, KeyVersion: version, MaterialID: envelope.MaterialID(k.id)}
}

func (f *fakeRoot) Wrap(ctx context.Context, p envelope.Plaintext, ad []byte) ([]byte, error) {
	if err := f.call(ctx, Wrap); err != nil {
		return nil, err
	}
	k := f.keys.key(f.uri)
	f.keys.mu.Lock()
	version, lies := k.version, k.lies
	f.keys.mu.Unlock()
	wrapped, err := k.material.Seal(f.header(version), envelope.AssociatedData{Raw: ad}, p)
	if lies && err == nil {
		wrapped[len(wrapped)-1] ^= 1
	}
	return wrapped, err
}

func (f *fakeRoot) Unwrap(ctx context.Context, wrapped, ad []byte) (envelope.Plaintext, error) {
	if err := f.call(ctx, Unwrap); err != nil {
		return envelope.Plaintext{}, err
	}
	b, err := envelope.Parse(bytes.Clone(wrapped))
	if err != nil {
		return envelope.Plaintext{}, err
	}
	k := f.keys.key(f.uri)
	if b.CheckKey(k.id, b.Header.KeyVersion, envelope.MaterialID(k.id)) != nil {
		return envelope.Plaintext{}, seal.ErrOtherRootKey
	}
	return k.material.Open(b, envelope.AssociatedData{Raw: ad})
}

// Stale reports whether an older version of the key wrapped it.
func (f *fakeRoot) Stale(wrapped []byte) bool {
	b, err := envelope.Parse(wrapped)
	k := f.keys.key(f.uri)
	f.keys.mu.Lock()
	defer f.keys.mu.Unlock()
	return err == nil && b.Header.KeyVersion < k.version
}

// KeyOf names the version of the key that wrapped it.
func (f *fakeRoot) KeyOf(wrapped []byte) string {
	b, err := envelope.Parse(wrapped)
	if err != nil {
		return ""
	}
	return strconv.Quote("version " + strconv.FormatUint(uint64(b.Header.KeyVersion), 10))
}
