package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/status"
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
)

// maxMessage is the most bytes that are passed on of what the key service or the network said.
const maxMessage = 1024

// opener is what keeper needs of Client.
type opener interface {
	Open(ctx context.Context, sealed []Sealed) ([]Opened, error)
}

// reader is what keeper needs of Source.
type reader interface {
	Read(name string) (Sealed, error)
}

// keeper keeps what is published true: it reads the Secrets, has new blobs opened, publishes, and tries again.
type keeper struct {
	names   []string
	source  reader
	service opener
	store   *store
	log     *slog.Logger

	kept     map[string]*kept
	outages  int // in a row
	modified bool
}

// kept is what keeper knows of one data key.
type kept struct {
	dataKey
	sealed Sealed
	// due is when to ask for sealed, zero when there is nothing to ask.
	due time.Time
	// noted is what was logged last, so that the same is not logged every second.
	noted string
}

func newKeeper(names []string, source reader, service opener, s *store, log *slog.Logger) *keeper {
	k := &keeper{names: names, source: source, service: service, store: s, log: log, kept: map[string]*kept{}}
	for _, name := range names {
		k.kept[name] = &kept{dataKey: *s.get(name)}
	}
	return k
}

// run works until the context ends.
func (k *keeper) run(ctx context.Context) {
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

// pass looks at every Secret, asks for what is due, publishes what changed, and returns when to come back.
func (k *keeper) pass(ctx context.Context) time.Duration {
	now := time.Now()
	for _, name := range k.names {
		k.read(name, now)
	}
	if due := k.due(now); len(due) > 0 {
		k.publish() // what waits for its Secret is told before the key service is waited for
		k.ask(ctx, due)
	}
	k.publish()

	next := pollInterval
	for _, kept := range k.kept {
		if !kept.due.IsZero() {
			next = min(next, max(0, time.Until(kept.due)))
		}
	}
	return next
}

// read takes over a Secret that changed.
func (k *keeper) read(name string, now time.Time) {
	kept := k.kept[name]
	sealed, err := k.source.Read(name)
	switch {
	case err == nil && sealed.equal(kept.sealed):
		return
	case err == nil:
		kept.sealed, kept.due = sealed, now
		return
	case errors.Is(err, errBlobInvalid):
		k.refuse(kept, ReasonBlobInvalid, err.Error())
	case errors.Is(err, errSecretMissing):
		k.wait(kept, ReasonSecretNotFound, err.Error())
	default:
		k.wait(kept, ReasonSecretUnreadable, err.Error())
	}
	// Only another Secret helps, or the same one once more.
	kept.sealed, kept.due = Sealed{}, time.Time{}
}

// due returns the data keys to ask for.
func (k *keeper) due(now time.Time) []*kept {
	var due []*kept
	for _, name := range k.names {
		if kept := k.kept[name]; !kept.due.IsZero() && !kept.due.After(now) {
			due = append(due, kept)
		}
	}
	return due
}

// ask asks for all of them at once and notes the answers.
func (k *keeper) ask(ctx context.Context, due []*kept) {
	sealed := make([]Sealed, len(due))
	for i, kept := range due {
		sealed[i] = kept.sealed
	}
	opened, err := k.service.Open(ctx, sealed)
	if err != nil && ctx.Err() != nil {
		return // the sidecar stops
	}
	if err != nil {
		opened = slices.Repeat([]Opened{{Err: err}}, len(due))
	}
	// One moment for all that failed alike, so that the next try is one call again.
	outage, refusal := time.Now().Add(k.outageDelay()), time.Now().Add(jitter(refusalRetry))
	outages := 0
	for i, kept := range due {
		answer := opened[i]
		code := status.Code(answer.Err)
		reason, refused := refusals[code]
		switch {
		case answer.Err == nil:
			k.issue(kept, answer)
			kept.due = time.Time{}
		case refused:
			k.refuse(kept, reason, message(answer.Err))
			kept.due = refusal
		default:
			k.wait(kept, ReasonKeyServiceUnavailable, fmt.Sprintf("the key service answers %v: %s", code, message(answer.Err)))
			kept.due = outage
			outages++
		}
	}
	if outages > 0 {
		k.outages++
	} else {
		k.outages = 0
	}
}

// issue publishes a plaintext, in place of an older one where there is one.
func (k *keeper) issue(kept *kept, answer Opened) {
	pair := readKeyPair(answer.Plaintext)
	kept.dataKeyStatus = dataKeyStatus{
		Name: kept.Name, State: StateIssued, Generation: kept.sealed.Generation,
		KeyID: answer.KeyARN, KeyVersion: answer.KeyVersion, Algorithm: algorithmAESGCM, KeyPairSpec: pair.Spec,
	}
	kept.issued = newIssued(answer.Plaintext, newAnswer(kept.dataKeyStatus, kept.sealed, pair.PublicKey, answer.Plaintext.Len()))
	kept.noted = ""
	k.modified = true
	k.log.Info("data key issued", "dataKey", kept.Name, "generation", kept.Generation, "keyVersion", kept.KeyVersion)
}

// refuse ends a data key, unless the refusal is about the bytes of a newer blob than the one it came from.
func (k *keeper) refuse(kept *kept, reason, message string) {
	if kept.issued != nil && aboutBlob(reason) {
		k.note(kept, "data key kept although its Secret has changed", reason, message)
		return
	}
	k.set(kept, StateRefused, reason, message)
}

// wait notes that a data key cannot be had now. One that is issued stays so: neither a Secret that is gone nor an outage
// takes it from a pod that has it. And an outage does not soften a refusal.
func (k *keeper) wait(kept *kept, reason, message string) {
	switch {
	case kept.issued != nil:
		k.note(kept, "data key kept although its Secret has changed", reason, message)
	case kept.State == StatePending || reason != ReasonKeyServiceUnavailable:
		k.set(kept, StatePending, reason, message)
	}
}

// set puts a data key into a state other than StateIssued.
func (k *keeper) set(kept *kept, state State, reason, message string) {
	next := dataKeyStatus{Name: kept.Name, State: state, Reason: reason, Message: message}
	if kept.dataKeyStatus == next {
		return
	}
	kept.dataKeyStatus, kept.issued = next, nil
	k.modified = true
	k.note(kept, "data key not issued", reason, message)
}

// note logs what keeps a data key from being issued, once.
func (k *keeper) note(kept *kept, what, reason, message string) {
	if noted := reason + message; noted != kept.noted {
		kept.noted = noted
		k.log.Warn(what, "dataKey", kept.Name, "reason", reason, "message", message)
	}
}

func (k *keeper) publish() {
	if !k.modified {
		return
	}
	k.modified = false
	keys := make([]*dataKey, len(k.names))
	for i, name := range k.names {
		published := k.kept[name].dataKey
		keys[i] = &published
	}
	k.store.publish(keys)
}

// outageDelay is how long to wait after the outage at hand.
func (k *keeper) outageDelay() time.Duration {
	d := firstRetry
	for range k.outages {
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
