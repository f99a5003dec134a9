package certs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/go-logr/logr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	applyadmissionregistrationv1 "k8s.io/client-go/applyconfigurations/admissionregistration/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldManager owns caBundle in the webhook configuration, and nothing else there: whoever applies the rest of the object
// (Helm, kubectl, a GitOps controller) neither sees a difference nor takes the bundle away.
const FieldManager = "datakeys-ca-bundle"

const (
	// bundlePeriod is how often the webhook configuration is read again, bundlePeriodEarly until it was right once.
	bundlePeriod      = 10 * time.Second
	bundlePeriodEarly = time.Second
)

// CABundle keeps the roots of an Authority in a MutatingWebhookConfiguration, so that the API server trusts the webhook.
// Every replica runs one; they write the same.
//
// It reads the one object by its name every ten seconds, where a watch would need the permission to list, and writes only
// if there is a difference.
type CABundle struct {
	authority     *Authority
	reader        client.Reader
	writer        client.Writer
	configuration string
	clock         clock.Clock
	logger        logr.Logger

	mu sync.Mutex
	// settled: the API server was seen to hold the bundle. It stays true: a replica that served once goes on when somebody
	// deletes the configuration, since the key service of the running pods does not need it.
	settled bool
	problem error
}

// NewCABundle returns the keeper of the bundle in the MutatingWebhookConfiguration of this name. The reader must not be a
// cache. Without a clock it uses the real one.
func NewCABundle(
	authority *Authority, reader client.Reader, writer client.Writer, configuration string, clk clock.Clock, logger logr.Logger,
) *CABundle {
	if clk == nil {
		clk = clock.RealClock{}
	}
	return &CABundle{
		authority: authority, reader: reader, writer: writer, configuration: configuration, clock: clk, logger: logger,
		problem: fmt.Errorf("the MutatingWebhookConfiguration %s was not looked at yet", configuration),
	}
}

// NeedLeaderElection says that every replica runs this: each has to know that the API server trusts it.
func (*CABundle) NeedLeaderElection() bool { return false }

// Start keeps the bundle until ctx ends.
func (b *CABundle) Start(ctx context.Context) error {
	for {
		if err := b.sync(ctx); err != nil && ctx.Err() == nil {
			b.logger.Error(err, "Cannot keep the CA bundle of the webhook; trying again")
		}
		if !sleep(ctx, b.clock, b.period()) {
			return nil
		}
	}
}

// Ready is a readiness check: nil once the API server was seen to trust this authority, or there is no configuration by
// which it would call us.
func (b *CABundle) Ready(*http.Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.settled {
		return nil
	}
	return b.problem
}

func (b *CABundle) period() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.settled {
		return bundlePeriod
	}
	return bundlePeriodEarly
}

func (b *CABundle) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	settled, err := b.syncOnce(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settled = b.settled || settled
	b.problem = err
	return err
}

// syncOnce reports whether the configuration exists and holds the bundle.
func (b *CABundle) syncOnce(ctx context.Context) (bool, error) {
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{}
	err := b.reader.Get(ctx, client.ObjectKey{Name: b.configuration}, configuration)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading the MutatingWebhookConfiguration %s: %w", b.configuration, err)
	}
	if holds(configuration, b.authority.RootsPEM()) {
		return true, nil
	}
	// Read the roots again before writing: this replica may be the one that has not heard of a successor yet.
	if err := b.authority.sync(ctx); err != nil {
		return false, err
	}
	bundle := b.authority.RootsPEM()
	if len(bundle) == 0 {
		return false, errors.New("the roots of the serving certificates are not loaded yet")
	}
	if holds(configuration, bundle) {
		return true, nil
	}
	apply := applyadmissionregistrationv1.MutatingWebhookConfiguration(b.configuration)
	for _, webhook := range configuration.Webhooks {
		apply.WithWebhooks(applyadmissionregistrationv1.MutatingWebhook().WithName(webhook.Name).WithClientConfig(
			applyadmissionregistrationv1.WebhookClientConfig().WithCABundle(bundle...)))
	}
	if err := b.writer.Apply(ctx, apply, client.FieldOwner(FieldManager), client.ForceOwnership); err != nil {
		return false, fmt.Errorf("applying caBundle to the MutatingWebhookConfiguration %s: %w", b.configuration, err)
	}
	b.logger.Info("Wrote the CA bundle of the webhook", "configuration", b.configuration)
	return true, nil
}

// holds reports whether every webhook of the configuration has this bundle.
func holds(configuration *admissionregistrationv1.MutatingWebhookConfiguration, bundle []byte) bool {
	if len(bundle) == 0 {
		return false
	}
	for _, webhook := range configuration.Webhooks {
		if !bytes.Equal(webhook.ClientConfig.CABundle, bundle) {
			return false
		}
	}
	return true
}
