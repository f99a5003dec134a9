// Package kmstest has the surroundings of a key service in memory: callers, permissions, MasterKeys, audit and events. Its
// KeyStore is sealtest.Store.
package kmstest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/datakeys/datakeys/internal/kms"
)

// Authenticator knows callers by their tokens. The zero Authenticator knows nobody.
type Authenticator struct {
	// Err, if set, is returned instead of any answer.
	Err error

	mu      sync.Mutex
	callers map[string]kms.Caller
	calls   int
}

// Caller returns a pod's caller as Kubernetes would describe it.
func Caller(namespace, serviceAccount, pod string) kms.Caller {
	return kms.Caller{
		Namespace:      namespace,
		ServiceAccount: serviceAccount,
		PodName:        pod,
		PodUID:         "uid-of-" + pod,
		Node:           "node-1",
		Username:       "system:serviceaccount:" + namespace + ":" + serviceAccount,
		UID:            "uid-of-" + serviceAccount,
		Groups:         []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
	}
}

// Add makes a token valid for a caller.
func (a *Authenticator) Add(token string, c kms.Caller) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.callers == nil {
		a.callers = map[string]kms.Caller{}
	}
	a.callers[token] = c
}

// Authenticate implements kms.Authenticator.
func (a *Authenticator) Authenticate(_ context.Context, token string) (kms.Caller, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	if a.Err != nil {
		return kms.Caller{}, a.Err
	}
	c, ok := a.callers[token]
	if !ok {
		return kms.Caller{}, fmt.Errorf("%w: no such token", kms.ErrUnauthenticated)
	}
	return c, nil
}

// Calls returns how often a token was reviewed.
func (a *Authenticator) Calls() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// Authorizer allows what was granted. The zero Authorizer allows nothing.
type Authorizer struct {
	// Err, if set, is returned instead of any answer.
	Err error

	mu     sync.Mutex
	grants map[string][]kms.Access
	asked  []kms.Access
}

// Grant allows a user an access; with an empty name, to every object of the resource in the namespace.
func (a *Authorizer) Grant(username string, access kms.Access) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.grants == nil {
		a.grants = map[string][]kms.Access{}
	}
	a.grants[username] = append(a.grants[username], access)
}

// Revoke takes every grant from a user.
func (a *Authorizer) Revoke(username string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.grants, username)
}

// Authorize implements kms.Authorizer.
func (a *Authorizer) Authorize(_ context.Context, c kms.Caller, access kms.Access) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, access)
	if a.Err != nil {
		return false, a.Err
	}
	all := access
	all.Name = ""
	return slices.Contains(a.grants[c.Username], access) || slices.Contains(a.grants[c.Username], all), nil
}

// Asked returns every access that was asked about.
func (a *Authorizer) Asked() []kms.Access {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.asked)
}

// Allow allows everything.
type Allow struct{}

// Authorize implements kms.Authorizer.
func (Allow) Authorize(context.Context, kms.Caller, kms.Access) (bool, error) { return true, nil }

// MasterKeys holds MasterKey objects, each with the aliases that it has. The zero MasterKeys is empty.
type MasterKeys struct {
	// Err, if set, is returned instead of any answer.
	Err error

	mu   sync.Mutex
	keys map[[2]string]kms.MasterKey
}

// Put adds or replaces a MasterKey. Without a State it is Enabled.
func (m *MasterKeys) Put(k kms.MasterKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = map[[2]string]kms.MasterKey{}
	}
	if k.State == "" {
		k.State = kms.KeyStateEnabled
	}
	m.keys[[2]string{k.Namespace, k.Name}] = k
}

// Delete removes a MasterKey.
func (m *MasterKeys) Delete(namespace, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, [2]string{namespace, name})
}

// Edit changes a MasterKey, if there is one of that name.
func (m *MasterKeys) Edit(namespace, name string, change func(*kms.MasterKey)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k, ok := m.keys[[2]string{namespace, name}]; ok {
		change(&k)
		m.keys[[2]string{namespace, name}] = k
	}
}

// ByName implements kms.MasterKeys.
func (m *MasterKeys) ByName(_ context.Context, namespace, name string) (kms.MasterKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Err != nil {
		return kms.MasterKey{}, m.Err
	}
	k, ok := m.keys[[2]string{namespace, name}]
	if !ok {
		return kms.MasterKey{}, fmt.Errorf("%w: %s/%s", kms.ErrMasterKeyNotFound, namespace, name)
	}
	k.Aliases = nil
	return k, nil
}

// ByAlias implements kms.MasterKeys.
func (m *MasterKeys) ByAlias(ctx context.Context, namespace, alias string) (kms.MasterKey, error) {
	all, err := m.List(ctx, namespace)
	if err != nil {
		return kms.MasterKey{}, err
	}
	i := slices.IndexFunc(all, func(k kms.MasterKey) bool { return slices.Contains(k.Aliases, alias) })
	if i < 0 {
		return kms.MasterKey{}, fmt.Errorf("%w: %s/alias/%s", kms.ErrMasterKeyNotFound, namespace, alias)
	}
	all[i].Aliases = nil
	return all[i], nil
}

// List implements kms.MasterKeys.
func (m *MasterKeys) List(_ context.Context, namespace string) ([]kms.MasterKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Err != nil {
		return nil, m.Err
	}
	var list []kms.MasterKey
	for key, k := range m.keys {
		if key[0] == namespace {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b kms.MasterKey) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Auditor keeps records in memory. The zero Auditor is empty.
type Auditor struct {
	// Err, if set, is returned instead of keeping a record.
	Err error

	mu      sync.Mutex
	records []kms.AuditRecord
}

// Record implements kms.Auditor.
func (a *Auditor) Record(ctx context.Context, r kms.AuditRecord) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.Err != nil {
		return a.Err
	}
	a.records = append(a.records, r)
	return nil
}

// Records returns every record so far.
func (a *Auditor) Records() []kms.AuditRecord {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

// Discard keeps no records.
type Discard struct{}

// Record implements kms.Auditor.
func (Discard) Record(context.Context, kms.AuditRecord) error { return nil }

// Denial is what Events was told.
type Denial struct {
	Pod                     kms.Pod
	DataKeyRequest, Message string
}

// InitialUse is what Events was told.
type InitialUse struct {
	Key       kms.MasterKeyRef
	Pod       kms.Pod
	Operation string
}

// Events keeps what it is told in memory. The zero Events is empty.
type Events struct {
	mu      sync.Mutex
	denials []Denial
	uses    []InitialUse
}

// InitialVersionUsed implements kms.Events.
func (e *Events) InitialVersionUsed(key kms.MasterKeyRef, pod kms.Pod, operation string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.uses = append(e.uses, InitialUse{key, pod, operation})
}

// InitialUses returns every use of an initial version so far.
func (e *Events) InitialUses() []InitialUse {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.uses)
}

// Denied implements kms.Events.
func (e *Events) Denied(pod kms.Pod, dataKeyRequest, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.denials = append(e.denials, Denial{pod, dataKeyRequest, message})
}

// Denials returns every denial so far.
func (e *Events) Denials() []Denial {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.denials)
}

var (
	_ kms.Authenticator = (*Authenticator)(nil)
	_ kms.Authorizer    = (*Authorizer)(nil)
	_ kms.Authorizer    = Allow{}
	_ kms.MasterKeys    = (*MasterKeys)(nil)
	_ kms.Auditor       = (*Auditor)(nil)
	_ kms.Auditor       = Discard{}
	_ kms.Events        = (*Events)(nil)
)
