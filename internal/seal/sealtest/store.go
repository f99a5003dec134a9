// Package sealtest has a seal.Store and root keys in memory, which fail when they are told to.
package sealtest

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/datakeys/datakeys/internal/seal"
)

// ErrInjected is the failure that a Fault makes.
var ErrInjected = errors.New("sealtest: injected failure")

// Fault says how a call fails.
type Fault int

const (
	// None lets the call through.
	None Fault = iota
	// Fail returns ErrInjected and does nothing.
	Fail
	// DoAndFail does what was asked and returns ErrInjected, as a connection that breaks before the answer.
	DoAndFail
)

// Methods of a Store.
const (
	Get    = "Get"
	Create = "Create"
	Update = "Update"
	Remove = "Remove"
	List   = "List"
	Any    = "Any"
)

// Call is one call of a Store.
type Call struct {
	Method string // Get, Create, Update, Remove, List or Any, as the constants
	Name   string // of the Secret; the type for List and Any
}

// Store is a seal.Store in memory. The zero Store is empty and ready; it is safe for concurrent use.
type Store struct {
	// Hook, if set, is asked before each call with its number, which counts from 1. It may block. It is not called
	// with the store locked.
	Hook func(n int, c Call) Fault

	mu      sync.Mutex
	secrets map[string]*seal.Secret // pointers, so that printing a Store prints no key
	calls   []Call
	puts    int // the resourceVersion of the last one
}

func (s *Store) call(c Call) Fault {
	s.mu.Lock()
	s.calls = append(s.calls, c)
	n := len(s.calls)
	s.mu.Unlock()
	if s.Hook == nil {
		return None
	}
	return s.Hook(n, c)
}

// Get implements seal.Store.
func (s *Store) Get(ctx context.Context, name string) (seal.Secret, error) {
	if err := ctx.Err(); err != nil {
		return seal.Secret{}, err
	}
	if s.call(Call{Get, name}) != None {
		return seal.Secret{}, ErrInjected
	}
	if err := ctx.Err(); err != nil { // the hook may have taken long
		return seal.Secret{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	got, ok := s.secrets[name]
	if !ok {
		return seal.Secret{}, seal.ErrSecretNotFound
	}
	return clone(*got), nil
}

// Create implements seal.Store.
func (s *Store) Create(ctx context.Context, secret seal.Secret) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fault := s.call(Call{Create, secret.Name})
	if fault == Fail {
		return ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.secrets[secret.Name]; ok {
		return seal.ErrSecretExists
	}
	s.put(secret)
	if fault == DoAndFail {
		return ErrInjected
	}
	return nil
}

// Update implements seal.Store.
func (s *Store) Update(ctx context.Context, secret seal.Secret) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fault := s.call(Call{Update, secret.Name})
	if fault == Fail {
		return ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.secrets[secret.Name]
	if !ok {
		return seal.ErrSecretNotFound
	}
	if was.ResourceVersion != secret.ResourceVersion {
		return seal.ErrSecretChanged
	}
	now := clone(*was)
	now.Data = secret.Data
	s.put(now)
	if fault == DoAndFail {
		return ErrInjected
	}
	return nil
}

// Remove implements kms.KeyStore.
func (s *Store) Remove(ctx context.Context, secret seal.Secret) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fault := s.call(Call{Remove, secret.Name})
	if fault == Fail {
		return ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.secrets[secret.Name]
	if !ok {
		return seal.ErrSecretNotFound
	}
	if was.ResourceVersion != secret.ResourceVersion {
		return seal.ErrSecretChanged
	}
	delete(s.secrets, secret.Name)
	if fault == DoAndFail {
		return ErrInjected
	}
	return nil
}

// List implements seal.Store.
func (s *Store) List(ctx context.Context, secretType string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.call(Call{List, secretType}) != None {
		return nil, ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, got := range s.secrets {
		if got.Type == secretType {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Any implements seal.Store.
func (s *Store) Any(ctx context.Context, secretType string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if s.call(Call{Any, secretType}) != None {
		return false, ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, got := range s.secrets {
		if got.Type == secretType {
			return true, nil
		}
	}
	return false, nil
}

// Put writes a Secret whether or not there is one, as somebody with kubectl would.
func (s *Store) Put(secret seal.Secret) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(secret)
}

// Edit changes the Secret of that name, which must exist, by hand.
func (s *Store) Edit(name string, edit func(*seal.Secret)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret := clone(*s.secrets[name])
	edit(&secret)
	s.put(secret)
}

// Delete removes the Secret of that name.
func (s *Store) Delete(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.secrets, name)
}

// Secrets returns a copy of every Secret, by name.
func (s *Store) Secrets() map[string]seal.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]seal.Secret, len(s.secrets))
	for name, secret := range s.secrets {
		out[name] = clone(*secret)
	}
	return out
}

// WrappedSealingKey returns the first version of the sealing key, as a root key wrapped it.
func (s *Store) WrappedSealingKey() []byte {
	for entry, wrapped := range s.Secrets()[seal.SealingKeysSecret].Data {
		if strings.HasPrefix(entry, "v1.") {
			return wrapped
		}
	}
	return nil
}

// Calls returns every call so far.
func (s *Store) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Call(nil), s.calls...)
}

func (s *Store) put(secret seal.Secret) {
	if s.secrets == nil {
		s.secrets = map[string]*seal.Secret{}
	}
	secret = clone(secret)
	s.puts++
	secret.ResourceVersion = strconv.Itoa(s.puts)
	s.secrets[secret.Name] = &secret
}

func clone(s seal.Secret) seal.Secret {
	s.Labels = maps.Clone(s.Labels)
	s.Annotations = maps.Clone(s.Annotations)
	data := make(map[string][]byte, len(s.Data))
	for k, v := range s.Data {
		data[k] = bytes.Clone(v)
	}
	s.Data = data
	return s
}

var _ seal.Store = (*Store)(nil)
