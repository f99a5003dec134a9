package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
)

const (
	// resyncPeriod is how often the roots are read again.
	resyncPeriod = time.Minute
	// firstRetry and then its doubles, up to resyncPeriod, pass before a failed read or write is tried again.
	firstRetry = time.Second
	// syncTimeout bounds one read and write of the roots.
	syncTimeout = 30 * time.Second
	// syncAttempts bounds how often one sync begins again because another replica wrote first, or to read back its own
	// write.
	syncAttempts = 5
)

// Authority holds the roots and answers TLS handshakes with leaves under them. There is one in every replica.
//
// What it promises to a pod that was given RootsPEM when it was created: for four years from then, less the minutes in
// which replicas agree, every leaf verifies. The newest root that the pod knows had five years left; a root that it does
// not know was made later, and signs four years after that, or in the last week of the older one. It holds across any time
// without a manager, as long as the Secret is not deleted in it.
type Authority struct {
	store  Store
	clock  clock.Clock
	logger logr.Logger

	// syncing is held through a sync: two at once would each make a root.
	syncing sync.Mutex
	roots   atomic.Pointer[[]*root]
	failure atomic.Pointer[error]
}

// NewAuthority returns an authority without roots; Start loads them. Without a clock it uses the real one.
func NewAuthority(store Store, clk clock.Clock, logger logr.Logger) *Authority {
	if clk == nil {
		clk = clock.RealClock{}
	}
	return &Authority{store: store, clock: clk, logger: logger}
}

// NeedLeaderElection says that every replica runs this: all of them serve.
func (*Authority) NeedLeaderElection() bool { return false }

// Start loads the roots, makes them if there are none, and follows them until ctx ends.
func (a *Authority) Start(ctx context.Context) error {
	retry := firstRetry
	for {
		wait := resyncPeriod
		if err := a.sync(ctx); err != nil && ctx.Err() == nil {
			a.logger.Error(err, "Cannot read the roots of the serving certificates; trying again", "after", retry)
			wait, retry = retry, min(2*retry, resyncPeriod)
		} else {
			retry = firstRetry
		}
		if !sleep(ctx, a.clock, wait) {
			return nil
		}
	}
}

// ServerTLSConfig is for a server of these names. It takes TLS 1.3 only, and its certificate renews itself.
func (a *Authority) ServerTLSConfig(dnsNames ...string) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	a.WebhookTLS(dnsNames...)(config)
	return config
}

// WebhookTLS does the same to the configuration of controller-runtime's webhook server.
func (a *Authority) WebhookTLS(dnsNames ...string) func(*tls.Config) {
	source := &leaves{authority: a, dnsNames: dnsNames}
	return func(config *tls.Config) {
		config.MinVersion = tls.VersionTLS13
		config.GetCertificate = source.get
		// A resumed session shows no certificate, and so would outlive the one that it began with.
		config.SessionTicketsDisabled = true
	}
}

// RootsPEM is the bundle that a client of our servers has to trust: the certificates of all roots that have not expired, the
// oldest first. It is nil until the roots are loaded.
func (a *Authority) RootsPEM() []byte {
	var bundle bytes.Buffer
	for _, r := range a.plan().trusted {
		bundle.Write(r.pem())
	}
	return bundle.Bytes()
}

// Ready is a readiness check: nil once there is a root that signs.
func (a *Authority) Ready(*http.Request) error {
	if a.plan().signing != nil {
		return nil
	}
	if failure := a.failure.Load(); failure != nil && *failure != nil {
		return *failure
	}
	return errors.New("the roots of the serving certificates are not loaded yet")
}

func (a *Authority) plan() plan {
	return planAt(a.clock.Now(), a.known())
}

func (a *Authority) known() []*root {
	if roots := a.roots.Load(); roots != nil {
		return *roots
	}
	return nil
}

// sync reads the roots and writes what is missing.
func (a *Authority) sync(ctx context.Context) error {
	a.syncing.Lock()
	defer a.syncing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	err := a.syncOnce(ctx)
	for attempt := 1; errors.Is(err, errAgain); attempt++ {
		if attempt == syncAttempts {
			err = fmt.Errorf("the Secret %s changes faster than it can be read", SecretName)
			break
		}
		err = a.syncOnce(ctx)
	}
	a.failure.Store(&err)
	return err
}

// errAgain says that the Secret was just written, by this replica or another, and has to be read again.
var errAgain = errors.New("read again")

func (a *Authority) syncOnce(ctx context.Context) error {
	secret, err := a.store.Get(ctx)
	switch {
	case apierrors.IsNotFound(err):
		secret = nil
	case err != nil:
		return fmt.Errorf("reading the Secret %s: %w", SecretName, err)
	}
	var stored []*root
	if secret != nil {
		if stored, err = parseRoots(secret.Data); err != nil {
			return fmt.Errorf("the Secret %s: %w; restore it from a backup, or stop the manager, delete the Secret, start the "+
				"manager and restart every pod that has a sidecar", SecretName, err)
		}
	}

	var missing []*root
	if len(stored) == 0 {
		// Deleted or emptied while this replica runs. Pods out there trust the roots that it still knows.
		missing = a.known()
	}
	roots := slices.Concat(stored, missing)
	if now := a.clock.Now(); planAt(now, roots).makeRoot {
		made, err := newRoot(nextNumber(roots), now)
		if err != nil {
			return fmt.Errorf("making a root: %w", err)
		}
		missing = append(slices.Clip(missing), made)
	}
	if len(missing) == 0 {
		a.roots.Store(&stored)
		return nil
	}
	if err := a.write(ctx, secret, missing); err != nil {
		return err
	}
	return errAgain
}

// write adds roots to the Secret. Nil says that the Secret holds them, or that another replica wrote first.
func (a *Authority) write(ctx context.Context, secret *corev1.Secret, missing []*root) error {
	added := map[string][]byte{}
	for _, r := range missing {
		entries, err := r.entries()
		if err != nil {
			return fmt.Errorf("encoding a root: %w", err)
		}
		maps.Copy(added, entries)
	}
	var err error
	if secret == nil {
		err = a.store.Create(ctx, added)
	} else {
		secret = secret.DeepCopy()
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		maps.Copy(secret.Data, added)
		err = a.store.Update(ctx, secret)
	}
	switch {
	case err == nil:
		for _, r := range missing {
			a.logger.Info("Wrote a root of the serving certificates", "number", r.number, "notAfter", r.cert.NotAfter)
		}
		return nil
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil
	default:
		return fmt.Errorf("writing the Secret %s: %w", SecretName, err)
	}
}

func nextNumber(roots []*root) int {
	number := 1
	for _, r := range roots {
		number = max(number, r.number+1)
	}
	return number
}

// sleep waits and reports whether ctx still holds.
func sleep(ctx context.Context, clk clock.Clock, d time.Duration) bool {
	timer := clk.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C():
		return true
	}
}
