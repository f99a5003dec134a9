package keeper

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
)

// keptKey is what the keeper knows of one data key.
type keptKey struct {
	name string
	// secret was taken over last; nil to take over whatever there is.
	secret *secrets.Secret
	// generations are those of secret, the newest first.
	generations []*keptGeneration
	// newest is the first of them, or one without a number where that cannot be told.
	newest *keptGeneration
	// current is answered where no generation is asked for: newest, or, until that can be had, what was so before, even if
	// secret has it no more.
	current *keptGeneration
	// bound is what renderBound gave for secret; nil before it is needed.
	bound []byte
	// ignored is what was logged last of entries that are no generation's.
	ignored []string
}

// keptGeneration is what the keeper knows of one generation.
type keptGeneration struct {
	*keystore.Generation
	sealed keyservice.Sealed
	// opened reports whether what is issued came out of sealed, and not out of what the Secret had before.
	opened bool
	// due is when to ask for sealed, zero when there is nothing to ask.
	due time.Time
	// renewal asks for what is issued to be renewed, and renewedAt is when the last request was sent that got or renewed it.
	renewal   keyservice.Renewal
	renewedAt time.Time
	// noted is what was logged last, so that the same is not logged every second.
	noted string
}

func newKeptGeneration(name string, number uint32) *keptGeneration {
	return &keptGeneration{Generation: &keystore.Generation{Number: number, Status: keystore.Status{
		Name: name, State: keystore.StatePending, Reason: keystore.ReasonStarting, Message: "it has not been asked for yet",
	}}}
}

// denied reports whether the key service has said no, and not because of the blob.
func (g *keptGeneration) denied() bool { return g.State == keystore.StateRefused && denies(g.Reason) }

// all are the generations that are answered by number, the newest first.
func (d *keptKey) all() []*keptGeneration {
	if d.current.Number == 0 || slices.Contains(d.generations, d.current) {
		return d.generations
	}
	at, _ := slices.BinarySearchFunc(d.generations, d.current.Number, func(g *keptGeneration, number uint32) int {
		return cmp.Compare(number, g.Number) // the highest is first
	})
	return slices.Insert(slices.Clone(d.generations), at, d.current)
}

// published is what is to be published of a data key.
func (d *keptKey) published() *keystore.DataKey {
	k := &keystore.DataKey{Generation: d.current.Generation}
	for _, g := range d.all() {
		k.Generations = append(k.Generations, g.Generation)
	}
	return k
}

// read takes over a Secret that changed.
func (k *Keeper) read(d *keptKey, now time.Time) {
	before := d.all()
	secret, err := k.source.Read(d.name)
	switch {
	case err != nil:
		k.lose(d, err)
	case secret != d.secret:
		k.take(d, secret, now)
	default:
		return
	}
	k.settle(d, before)
}

// lose notes that there is no Secret. What is issued stays so; for the rest only another Secret helps, or the same one once more.
func (k *Keeper) lose(d *keptKey, err error) {
	d.secret = nil
	var issued []*keptGeneration
	for _, g := range d.generations {
		if g.sealed, g.due = (keyservice.Sealed{}), (time.Time{}); g.Issued != nil {
			issued = append(issued, g)
		}
	}
	d.generations = issued
	if d.newest.Issued == nil {
		d.forgetNewest()
	}
	k.failed(d, d.newest, err)
}

// take takes over a Secret. What is issued stays so until the key service has answered to what stands in its place.
func (k *Keeper) take(d *keptKey, s *secrets.Secret, now time.Time) {
	before, last := d.all(), d.newest
	d.secret, d.generations, d.bound = s, nil, nil
	if s.Newest.Err != nil {
		d.forgetNewest()
		k.failed(d, d.newest, s.Newest.Err)
	} else {
		d.newest = d.adopt(before, s.Newest.Generation)
		d.change(d.newest, s.Newest.Sealed, now)
		if d.newest != last && d.newest.denied() {
			d.newest.due = now // as an older one it was denied for itself alone
		}
	}
	for _, entry := range s.Older {
		g := d.adopt(before, entry.Generation)
		if entry.Err == nil {
			d.change(g, entry.Sealed, now)
			continue
		}
		g.sealed, g.due = keyservice.Sealed{}, time.Time{}
		k.failed(d, g, entry.Err)
	}
	if s.Newest.Err != nil {
		d.wake(now) // for there will be no answer
	}
	for _, sentence := range s.Ignored {
		if !slices.Contains(d.ignored, sentence) {
			k.log.Warn("entries of the Secret are ignored", "dataKey", d.name, "message", sentence)
		}
	}
	d.ignored = s.Ignored
}

// forgetNewest says that it cannot be told which generation is the newest.
func (d *keptKey) forgetNewest() {
	if d.newest.Number != 0 {
		d.newest = newKeptGeneration(d.name, 0)
	}
}

// adopt adds a generation that the Secret has, as it was among those before.
func (d *keptKey) adopt(before []*keptGeneration, number uint32) *keptGeneration {
	at := slices.IndexFunc(before, func(g *keptGeneration) bool { return g.Number == number })
	if at < 0 {
		d.generations = append(d.generations, newKeptGeneration(d.name, number))
	} else {
		d.generations = append(d.generations, before[at])
	}
	return d.generations[len(d.generations)-1]
}

// change takes over what the Secret has of a generation. While the newest one is denied, the others wait for that.
func (d *keptKey) change(g *keptGeneration, sealed keyservice.Sealed, now time.Time) {
	if sealed.Equal(g.sealed) {
		return
	}
	if g.sealed, g.opened, g.due = sealed, false, now; g != d.newest && d.newest.denied() {
		g.due = time.Time{}
	}
}

// failed notes that a Secret, or an entry of it, cannot be used.
func (k *Keeper) failed(d *keptKey, g *keptGeneration, err error) {
	switch {
	case errors.Is(err, secrets.ErrInvalid):
		k.refuse(d, g, keystore.ReasonBlobInvalid, err.Error())
	case errors.Is(err, secrets.ErrMissing):
		k.wait(d, g, keystore.ReasonSecretNotFound, err.Error())
	default:
		k.wait(d, g, keystore.ReasonSecretUnreadable, err.Error())
	}
}

// settle decides which generation is the current one, and tells which of those before are gone. The current one is the newest,
// but what is issued only gives way to another that is, or to a refusal that is not about the newest one's bytes.
func (k *Keeper) settle(d *keptKey, before []*keptGeneration) {
	n, last := d.newest, d.current
	if n != last && (n.Issued != nil || last.Issued == nil || n.State == keystore.StateRefused && !aboutBlob(n.Reason)) {
		d.current, k.modified = n, true
	}
	after := d.all()
	if slices.Equal(before, after) {
		return
	}
	k.modified = true
	for _, g := range before {
		if g.Issued != nil && !slices.Contains(after, g) {
			k.news.add(newsText{level: slog.LevelInfo, what: "generations dropped", dataKey: d.name}, g.Number)
		}
	}
}

// issue publishes a plaintext, in place of an older one where there is one, and makes due now what waited for it. Its lease counts
// from when it was asked for.
func (k *Keeper) issue(d *keptKey, g *keptGeneration, answer keyservice.Opened, now, sent time.Time) {
	if k.renewAt.IsZero() || k.renewAt.After(sent.Add(k.leases.renewBy())) { // in an outage renewals wait for longer
		k.renewAt = sent.Add(k.leases.renewAfter())
	}
	if g.Issued != nil && g.opened { // it is the same, and was asked for to be renewed
		answer.Plaintext.Destroy()
		g.prolong(sent, k.leases.Lease)
		return
	}
	pair := readKeyPair(answer.Plaintext)
	if d.bound == nil {
		d.bound = keystore.RenderBound(g.sealed.EncryptionContext, g.sealed.AAD)
	}
	s := keystore.Status{
		Name: d.name, State: keystore.StateIssued, Generation: g.Number,
		KeyID: answer.KeyARN, KeyVersion: answer.KeyVersion, Algorithm: keystore.AlgorithmAESGCM, KeyPairSpec: pair.Spec,
	}
	g.Generation = &keystore.Generation{Status: s, Number: g.Number, Issued: keystore.NewIssued(
		s, answer.Plaintext, g.sealed.CiphertextBlob, pair.PublicKey, d.bound, sent, k.leases.Lease)}
	g.renewal, g.renewedAt = g.sealed.Renewal, sent
	g.opened, g.due, g.noted = true, time.Time{}, ""
	k.modified = true
	if g != d.newest {
		k.news.add(newsText{level: slog.LevelInfo, what: "older generations issued", dataKey: d.name}, g.Number)
		return
	}
	k.news.add(newsText{level: slog.LevelInfo, what: "data key issued", dataKey: d.name, keyVersion: s.KeyVersion}, g.Number)
	d.wake(now)
}

// wake makes due now the older generations that waited for the answer to the newest.
func (d *keptKey) wake(now time.Time) {
	for _, g := range d.generations {
		if g != d.newest && !g.opened && g.due.IsZero() && g.sealed.CiphertextBlob != nil {
			g.due = now
		}
	}
}

// refuse ends a generation, unless the refusal is about the bytes of a newer blob than the one it came from.
func (k *Keeper) refuse(d *keptKey, g *keptGeneration, reason, message string) {
	if g.Issued == nil || !aboutBlob(reason) {
		k.set(g, keystore.StateRefused, reason, message)
	}
	k.note(d, g, reason, message)
	if g != d.newest || !denies(reason) {
		return
	}
	// It is about the data key, and asking for each generation again would not tell more.
	for _, g := range d.generations {
		if g != d.newest && (g.Issued != nil || g.sealed.CiphertextBlob != nil) {
			k.set(g, keystore.StateRefused, reason, message)
			g.due, g.noted = time.Time{}, reason+message
		}
	}
	d.secret = nil // what it holds in place of blobs is to be told again
}

// wait notes that a generation cannot be had now. One that is issued stays so: neither a Secret that is gone nor an outage
// takes it from a pod that has it, but for the end of its lease. And an outage does not soften a refusal, nor hide that end.
func (k *Keeper) wait(d *keptKey, g *keptGeneration, reason, message string) {
	switch {
	case g.Issued != nil:
	case reason != keystore.ReasonKeyServiceUnavailable || g.State == keystore.StatePending && g.Reason != keystore.ReasonLeaseExpired:
		k.set(g, keystore.StatePending, reason, message)
	default:
		return
	}
	k.note(d, g, reason, message)
}

// set puts a generation into a state other than StateIssued.
func (k *Keeper) set(g *keptGeneration, state keystore.State, reason, message string) {
	if next := (keystore.Status{Name: g.Name, State: state, Reason: reason, Message: message}); next != g.Status {
		g.Generation, g.opened = &keystore.Generation{Status: next, Number: g.Number}, false
		k.modified = true
	}
}

// note logs what keeps a generation from being issued, once.
func (k *Keeper) note(d *keptKey, g *keptGeneration, reason, message string) {
	noted := reason + message
	if noted == g.noted {
		return
	}
	g.noted = noted
	kept := g.Issued != nil
	text := newsText{level: slog.LevelWarn, what: "older generations not issued", dataKey: d.name, reason: reason, message: message}
	switch {
	case g != d.newest:
		if kept {
			text.what = "older generations kept although the Secret has changed"
		}
		k.news.add(text, g.Number)
	case kept || d.current.Issued != nil && !denies(reason) && reason != keystore.ReasonMasterKeyNotFound:
		k.log.Warn("data key kept although its Secret has changed", "dataKey", d.name, "reason", reason, "message", message)
	default:
		k.log.Warn("data key not issued", "dataKey", d.name, "reason", reason, "message", message)
	}
}

// aboutBlob reports whether a refusal for that reason is about the bytes of a blob, and so says nothing against a key
// that was issued from an earlier one.
func aboutBlob(reason string) bool {
	return reason == keystore.ReasonBlobInvalid || reason == keystore.ReasonBlobRefused
}

// denies reports whether a refusal for that reason is about the data key or the pod: it is one of every generation.
func denies(reason string) bool {
	return reason == keystore.ReasonAccessDenied || reason == keystore.ReasonUnauthenticated || reason == keystore.ReasonMasterKeyState
}
