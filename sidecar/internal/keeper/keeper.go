// Package keeper keeps the data keys of a sidecar: it reads the Secrets, has the key service open what they hold and renew the leases of
// what is issued, and publishes the outcome in a keystore.Store.
package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
)

// When to look and to ask again.
const (
	// pollInterval is how often the Secrets are looked at.
	pollInterval = time.Second
	// An outage is tried again after firstRetry, then after twice as long each time, up to lastRetry; each less a random
	// part of up to a half, so that the sidecars of a cluster do not come back in step.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 10 * time.Second
	// A refusal stands until somebody changes a permission or a key: asking again is slow, and costs an audit record.
	refusalRetry = 10 * time.Second
	// An older generation that is refused is asked for again after olderRetry, and no more than kmsv1.MaxBatch of them in that time:
	// the key service answers a pod only so many requests that it refuses.
	olderRetry = time.Minute
	// patience is how long is asked on before what has been answered is published. Only who has some thousand generations to
	// open at once gets beyond it.
	patience = time.Second
)

// maxMessage is the most bytes that are passed on of what the key service or the network said.
const maxMessage = 1024

// keyService is what the keeper needs of keyservice.Client.
type keyService interface {
	Open(ctx context.Context, sealed []keyservice.Sealed) ([]keyservice.Opened, error)
	// Renew returns an error for each, nil where it is renewed.
	Renew(ctx context.Context, all []keyservice.Renewal) ([]error, error)
}

// reader is what the keeper needs of secrets.Source.
type reader interface {
	Read(name string) (*secrets.Secret, error)
}

// Keeper keeps what is published true: it reads the Secrets, has new blobs opened and old leases renewed, publishes, and tries again.
//
// Each generation of a data key fares by itself, but for what the key service says of the newest: when that is denied, so are
// the others, and only when it is issued are they asked for again.
type Keeper struct {
	names   []string
	source  reader
	service keyService
	store   *keystore.Store
	leases  Leases
	log     *slog.Logger

	kept    map[string]*keptKey
	outages int // in a row
	// renewAt is when to renew what is issued, zero where nothing is. unrenewed is how many renewals failed in a row.
	renewAt   time.Time
	unrenewed int
	modified  bool
	news      news
}

// New returns a keeper of the data keys of those names, which are the store's too. What becomes of them is logged to log.
func New(names []string, source reader, service keyService, s *keystore.Store, leases Leases, log *slog.Logger) *Keeper {
	k := &Keeper{names: names, source: source, service: service, store: s, leases: leases, log: log, kept: map[string]*keptKey{}}
	for _, name := range names {
		published, _ := s.Get(name, 0)
		first := &keptGeneration{Generation: published.Generation}
		k.kept[name] = &keptKey{name: name, newest: first, current: first}
	}
	return k
}

// Run works until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(k.pass(ctx))
	}
}

// pass looks at every Secret, renews and asks for what is due, publishes what changed, and returns when to come back.
func (k *Keeper) pass(ctx context.Context) time.Duration {
	now := time.Now()
	for _, name := range k.names {
		k.read(k.kept[name], now)
	}
	k.publish(ctx) // what waits for its Secret is told before the key service is waited for
	if k.renewalDue(now) {
		k.renew(ctx)
	}
	k.expire(time.Now())
	k.publish(ctx) // what is refused ends before anything else is waited for
	k.ask(ctx, time.Now())
	k.publish(ctx)

	next := pollInterval
	if !k.renewAt.IsZero() {
		next = min(next, max(0, time.Until(k.renewAt)))
	}
	for _, d := range k.kept {
		for _, g := range d.generations {
			if !g.due.IsZero() {
				next = min(next, max(0, time.Until(g.due)))
			}
		}
	}
	return next
}

// due returns what there is to ask for: the newest generations first, then the others of one data key after the other.
func (k *Keeper) due(now time.Time) []wanted {
	var newest, older []wanted
	for _, name := range k.names {
		d := k.kept[name]
		for _, g := range d.generations {
			switch {
			case g.due.IsZero() || g.due.After(now):
			case g == d.newest:
				newest = append(newest, wanted{g, d})
			default:
				older = append(older, wanted{g, d})
			}
		}
	}
	return append(newest, older...)
}

// wanted is a generation to ask for.
type wanted struct {
	*keptGeneration
	of *keptKey
}

// ask asks for everything that is due, as much at once as a batch may have, and notes the answers. After a call that failed it
// asks for nothing more.
func (k *Keeper) ask(ctx context.Context, now time.Time) {
	all := k.due(now)
	if len(all) == 0 {
		return
	}
	start, outages := time.Now(), 0
	for ; len(all) > 0; all = k.due(now) {
		batch := all[:min(len(all), kmsv1.MaxBatch)]
		sealed := make([]keyservice.Sealed, len(batch))
		for i, g := range batch {
			sealed[i] = g.sealed
		}
		sent := time.Now()
		opened, err := k.callOpen(ctx, sealed)
		if err != nil && ctx.Err() != nil {
			return // the sidecar stops
		}
		if err != nil {
			batch, opened = all, slices.Repeat([]keyservice.Opened{{Err: err}}, len(all))
		}
		if n := k.answered(now, sent, batch, opened); n > 0 {
			outages = k.outages + 1
		}
		if time.Since(start) > patience {
			break // the rest stays due
		}
	}
	k.outages = outages
}

func (k *Keeper) callOpen(ctx context.Context, sealed []keyservice.Sealed) ([]keyservice.Opened, error) {
	if !k.renewAt.IsZero() { // a renewal must not wait for longer
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.leases.callTimeout())
		defer cancel()
	}
	return k.service.Open(ctx, sealed)
}

// answered notes the answers to a batch that was sent then, and returns how many are outages. What it makes due is due now.
func (k *Keeper) answered(now, sent time.Time, batch []wanted, opened []keyservice.Opened) (outages int) {
	// One moment for all that failed alike, so that the next try is one call again.
	outage, refusal := time.Now().Add(outageDelay(k.outages)), time.Now().Add(jitter(refusalRetry))
	var older []wanted // that are refused
	for i, g := range batch {
		answer := opened[i]
		if g.keptGeneration != g.of.newest && g.of.newest.denied() {
			answer.Plaintext.Destroy() // denied in this very batch
			g.due = time.Time{}
			continue
		}
		code := status.Code(answer.Err)
		reason, refused := keystore.RefusalReason(code)
		switch {
		case answer.Err == nil:
			k.issue(g.of, g.keptGeneration, answer, now, sent)
		case !refused:
			if g.Issued != nil && g.opened { // it was asked for to be renewed
				k.coast(g.keptGeneration, code)
			}
			k.wait(g.of, g.keptGeneration, keystore.ReasonKeyServiceUnavailable,
				fmt.Sprintf("the key service answers %v: %s", code, message(answer.Err)))
			g.due = outage
			outages++
		default:
			k.refuse(g.of, g.keptGeneration, reason, message(answer.Err))
			g.due = refusal
			switch {
			case g.keptGeneration != g.of.newest:
				older = append(older, g)
			case !denies(reason):
				g.of.wake(now)
			}
		}
		if g.keptGeneration == g.of.newest {
			k.settle(g.of, g.of.all())
		}
	}
	k.postpone(older)
	return outages
}

// postpone says when to ask again for older generations that are refused: kmsv1.MaxBatch of them at a time.
func (k *Keeper) postpone(refused []wanted) {
	now, wait := time.Now(), jitter(olderRetry)
	for _, g := range refused {
		g.due = time.Time{}
	}
	waiting := 0
	for _, d := range k.kept {
		for _, g := range d.generations {
			if g != d.newest && g.due.After(now) {
				waiting++
			}
		}
	}
	for i, g := range refused {
		g.due = now.Add(wait * time.Duration(1+(waiting+i)/kmsv1.MaxBatch))
	}
}

// publish publishes what changed, and then tells of it.
func (k *Keeper) publish(ctx context.Context) {
	if k.modified {
		k.modified = false
		keys := make([]*keystore.DataKey, len(k.names))
		for i, name := range k.names {
			keys[i] = k.kept[name].published()
		}
		k.store.Publish(keys)
	}
	k.news.tell(ctx, k.log)
}

// outageDelay is how long to wait after an outage that so many preceded.
func outageDelay(outages int) time.Duration {
	d := firstRetry
	for range outages {
		d = min(2*d, lastRetry)
		if d == lastRetry {
			break
		}
	}
	return jitter(d)
}

// jitter returns d less a random part of up to a half.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/2) //nolint:gosec // nothing secret depends on it
}

// message is the text of a status error, cut to a size that fits a log line and an event.
func message(err error) string {
	m := status.Convert(err).Message()
	if len(m) > maxMessage {
		m = strings.ToValidUTF8(m[:maxMessage], "") + "…" // no half of a character
	}
	return m
}
