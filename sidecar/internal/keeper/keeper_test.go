package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/secrettest"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// fakeSource holds what each name's Secret is: the blob of generation 1 alone, all generations, a Secret as it is, or the error
// that reading it gives.
type fakeSource map[string]any

// generations are entries of a Secret, each a blob or an error. The highest number is the newest's.
type generations map[uint32]any

// newestBroken stands in generations for a newest entry of which nothing can be told.
const newestBroken = math.MaxUint32

func (f fakeSource) Read(name string) (*secrets.Secret, error) {
	switch v := f[name].(type) {
	case string:
		return generations{1: v}.secret(), nil
	case generations:
		return v.secret(), nil
	case *secrets.Secret: // that is the same until it is another
		return v, nil
	case error:
		return nil, v
	default:
		return nil, secrets.ErrMissing
	}
}

func (g generations) secret() *secrets.Secret {
	s := &secrets.Secret{}
	for i, n := range slices.Backward(slices.Sorted(maps.Keys(g))) {
		e := secrets.Entry{Sealed: keyservice.Sealed{Generation: n}}
		switch v := g[n].(type) {
		case string:
			e.CiphertextBlob, e.Renewal.Name = []byte(v), v
		case error:
			e.Err = v
		}
		switch {
		case n == newestBroken:
			s.Newest = secrets.Entry{Err: e.Err}
		case i == len(g)-1:
			s.Newest = e
		default:
			s.Older = append(s.Older, e)
		}
	}
	return s
}

// fakeService answers each blob with its bytes as plaintext, or with the error that it is told.
type fakeService struct {
	started time.Time
	all     error
	refuse  map[string]error
	// asked are the calls: when, since the start, and for which blobs.
	asked []string
	when  []time.Duration
	// renewed are the calls to renew: when, and of which blobs. renewing is the error that they give as a whole, all where it is nil.
	renewed     []string
	renewedWhen []time.Duration
	renewing    error
	// whileRenewing, where it is set, is called in every call to renew.
	whileRenewing func()
	// given are all plaintexts that were answered. meanwhile, where it is set, is called in every call.
	given     []envelope.Plaintext
	meanwhile func()
	// hangs makes each call last until its caller gives up.
	hangs bool
}

func (f *fakeService) Open(ctx context.Context, sealed []keyservice.Sealed) ([]keyservice.Opened, error) {
	if f.hangs {
		return nil, hang(ctx)
	}
	call := ""
	opened := make([]keyservice.Opened, len(sealed))
	for i, s := range sealed {
		blob := string(s.CiphertextBlob)
		call += blob + " "
		if err := f.refuse[blob]; err != nil {
			opened[i].Err = err
			continue
		}
		p, err := envelope.PlaintextFromBytes([]byte("plaintext of " + blob))
		opened[i] = keyservice.Opened{KeyARN: "arn", KeyVersion: 1, Plaintext: p, Err: err}
	}
	if f.meanwhile != nil {
		f.meanwhile()
	}
	f.asked, f.when = append(f.asked, call), append(f.when, time.Since(f.started))
	if f.all != nil {
		return nil, f.all
	}
	for _, o := range opened {
		if o.Err == nil {
			f.given = append(f.given, o.Plaintext)
		}
	}
	return opened, nil
}

// hang is a call that the client ends.
func hang(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, keyservice.CallTimeout)
	defer cancel()
	<-ctx.Done()
	return ctx.Err()
}

// Renew answers as Open does.
func (f *fakeService) Renew(ctx context.Context, all []keyservice.Renewal) ([]error, error) {
	if f.hangs {
		return nil, hang(ctx)
	}
	call := ""
	answers := make([]error, len(all))
	for i, r := range all {
		call += r.Name + " "
		answers[i] = f.refuse[r.Name]
	}
	if f.whileRenewing != nil {
		f.whileRenewing()
	}
	f.renewed, f.renewedWhen = append(f.renewed, call), append(f.renewedWhen, time.Since(f.started))
	switch {
	case f.renewing != nil:
		return nil, f.renewing
	case f.all != nil:
		return nil, f.all
	}
	return answers, nil
}

// bench is a keeper at work under a clock that only moves when all wait: testing/synctest.
type bench struct {
	*testing.T
	source  fakeSource
	service *fakeService
	store   *keystore.Store
	logs    *sidecartest.Logs
}

// pass lets time pass, on the clock of synctest.
func (*bench) pass(d time.Duration) { time.Sleep(d) }

// usual are the leases of these tests.
var usual = Leases{Lease: DefaultLease, Coast: DefaultCoast}

func withKeeper(t *testing.T, names []string, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{
			T: t, source: fakeSource{}, service: &fakeService{started: time.Now(), refuse: map[string]error{}},
			store: keystore.New(names), logs: &sidecartest.Logs{},
		}
		b.wants("orders", "Pending Starting")
		f(b)
		b.checkWiped()
	})
}

// checkWiped checks that no plaintext is left but those that are published.
func (b *bench) checkWiped() {
	b.Helper()
	left, published := 0, 0
	for _, p := range b.service.given {
		if !p.IsZero() {
			left++
		}
	}
	for _, k := range b.store.Now().ByName {
		published += len(slices.Collect(k.Plaintexts()))
	}
	if left != published {
		b.Errorf("%d plaintexts are left, %d are published", left, published)
	}
}

// run lets the keeper work for that long, and stops it.
func (b *bench) run(k *Keeper, d time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), d)
	defer cancel()
	k.Run(ctx)
}

func (b *bench) keeper(names ...string) *Keeper {
	return New(names, b.source, b.service, b.store, usual, b.logs.Logger())
}

// wants checks what is published of a name: its state and reason, or its plaintext.
func (b *bench) wants(name, want string) {
	b.Helper()
	b.wantsGeneration(name, 0, want)
}

// wantsGeneration is wants for a generation, "" for one that there is not.
func (b *bench) wantsGeneration(name string, number uint32, want string) {
	b.Helper()
	if got := b.published(name, number); got != want {
		b.Errorf("%s, generation %d: got %q, want %q", name, number, got, want)
	}
}

func (b *bench) published(name string, number uint32) string {
	_, g := b.store.Get(name, number)
	switch {
	case g == nil:
		return ""
	case g.Issued == nil:
		return fmt.Sprintf("%s %s", g.State, g.Reason)
	}
	defer g.Issued.Release()
	return string(g.Issued.Plaintext.AppendTo(insecuresecret.Token{}, nil))
}

var denied = status.Error(codes.PermissionDenied, "not allowed")

func TestKeeperIssues(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		b.source["orders"], b.source["payments"] = "o1", "p1"
		b.run(b.keeper("orders", "payments"), time.Hour)
		b.wants("orders", "plaintext of o1")
		b.wants("payments", "plaintext of p1")
		if diff := cmp.Diff([]string{"o1 p1 "}, b.service.asked); diff != "" {
			b.Errorf("one call for all, and no more (-want +got):\n%s", diff)
		}
	})
}

func TestKeeperWaitsForSecrets(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		k := b.keeper("orders", "payments")
		b.source["payments"] = "p1"
		b.run(k, time.Minute)
		b.wants("orders", "Pending SecretNotFound")
		b.wants("payments", "plaintext of p1")
		b.source["orders"] = "o1"
		b.run(k, time.Nanosecond)
		b.wants("orders", "plaintext of o1")
		if diff := cmp.Diff([]string{"p1 ", "o1 "}, b.service.asked); diff != "" {
			b.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestKeeperRetriesOutagesQuicklyFirst(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		b.source["orders"], b.source["payments"] = "o1", "p1"
		b.service.all = status.Error(codes.Unavailable, "starting")
		k := b.keeper("orders", "payments")
		b.run(k, time.Minute)
		b.wants("orders", "Pending KeyServiceUnavailable")
		last := time.Duration(0)
		for i, when := range b.service.when {
			if b.service.asked[i] != "o1 p1 " {
				b.Errorf("call %d: got %q, want one call for both", i, b.service.asked[i])
			}
			if i > 0 {
				most := min(firstRetry<<(i-1), lastRetry)
				if wait := when - last; wait < most/2 || wait > most {
					b.Errorf("call %d came after %v, want %v to %v", i, wait, most/2, most)
				}
			}
			last = when
		}
		if n := len(b.service.when); n < 9 || n > 18 {
			b.Errorf("got %d calls in a minute", n)
		}
		b.service.all = nil
		b.run(k, lastRetry)
		b.wants("orders", "plaintext of o1")
		b.wants("payments", "plaintext of p1")

		b.service.all = status.Error(codes.Unavailable, "starting again")
		b.source["orders"] = "o2"
		b.service.when = nil
		b.run(k, 2*firstRetry)
		if len(b.service.when) < 2 {
			b.Error("the next outage is not tried again quickly")
		}
	})
}

func TestKeeperStates(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"not allowed":            {denied, "Refused AccessDenied"},
		"a token that is no use": {status.Error(codes.Unauthenticated, "x"), "Refused Unauthenticated"},
		"no such master key":     {status.Error(codes.NotFound, "x"), "Refused MasterKeyNotFound"},
		"a disabled master key":  {status.Error(codes.FailedPrecondition, "x"), "Refused MasterKeyState"},
		"a blob that fails":      {status.Error(codes.InvalidArgument, "x"), "Refused BlobRefused"},
		"try again":              {status.Error(codes.Unavailable, "x"), "Pending KeyServiceUnavailable"},
		"too slow":               {context.DeadlineExceeded, "Pending KeyServiceUnavailable"},
		"internal":               {status.Error(codes.Internal, "x"), "Pending KeyServiceUnavailable"},
		"a code of the future":   {status.Error(codes.Code(99), "x"), "Pending KeyServiceUnavailable"},
		"no status at all":       {errors.New("x"), "Pending KeyServiceUnavailable"},
	} {
		for way, set := range map[string]func(*fakeService){
			"of one key":     func(s *fakeService) { s.refuse["o1"] = test.err },
			"of the request": func(s *fakeService) { s.all = test.err },
		} {
			t.Run(name+" "+way, func(t *testing.T) {
				withKeeper(t, []string{"orders"}, func(b *bench) {
					b.source["orders"] = "o1"
					set(b.service)
					b.run(b.keeper("orders"), time.Nanosecond)
					b.wants("orders", test.want)
				})
			})
		}
	}
}

func TestKeeperRetriesRefusalsSlowly(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		b.source["orders"], b.source["payments"] = "o1", "p1"
		b.service.refuse["o1"] = denied
		k := b.keeper("orders", "payments")
		b.run(k, time.Minute)
		b.wants("orders", "Refused AccessDenied")
		b.wants("payments", "plaintext of p1")
		for i := 1; i < len(b.service.when); i++ {
			if wait := b.service.when[i] - b.service.when[i-1]; wait < refusalRetry/2 || wait > refusalRetry {
				b.Errorf("call %d came after %v", i, wait)
			}
		}
		b.service.all = status.Error(codes.Unavailable, "away")
		b.run(k, time.Minute)
		b.wants("orders", "Refused AccessDenied") // an outage is no pardon
		b.service.all, b.service.refuse = nil, nil
		b.run(k, refusalRetry)
		b.wants("orders", "plaintext of o1")
	})
}

// TestKeeperAndChanges: what becomes of an issued data key when its Secret changes.
func TestKeeperAndChanges(t *testing.T) {
	for name, test := range map[string]struct {
		change any
		err    error
		want   string
	}{
		"a new blob":                         {"o2", nil, "plaintext of o2"},
		"a new blob in an outage":            {"o2", status.Error(codes.Unavailable, "x"), "plaintext of o1"},
		"a new blob that does not open":      {"o2", status.Error(codes.InvalidArgument, "x"), "plaintext of o1"},
		"a new blob that is denied":          {"o2", denied, "Refused AccessDenied"},
		"a new blob of a disabled key":       {"o2", status.Error(codes.FailedPrecondition, "x"), "Refused MasterKeyState"},
		"a blob that is none":                {secrets.ErrInvalid, nil, "plaintext of o1"},
		"no Secret any more":                 {secrets.ErrMissing, nil, "plaintext of o1"},
		"a Secret that cannot be read":       {errors.New("input/output error"), nil, "plaintext of o1"},
		"the same blob, which is denied now": {"o1", denied, "Refused AccessDenied"},
		"no Secret any more, and denied":     {secrets.ErrMissing, denied, "Pending SecretNotFound"},
	} {
		t.Run(name, func(t *testing.T) {
			withKeeper(t, []string{"orders"}, func(b *bench) {
				k := b.keeper("orders")
				b.source["orders"] = "o1"
				b.run(k, time.Nanosecond)
				b.wants("orders", "plaintext of o1")
				b.source["orders"] = test.change
				b.service.refuse = map[string]error{"o1": test.err, "o2": test.err}
				b.run(k, time.Minute)
				b.wants("orders", test.want)

				b.service.refuse = nil
				b.source["orders"] = "o3"
				b.run(k, time.Minute)
				b.wants("orders", "plaintext of o3")
			})
		})
	}
}

// TestKeeperBeforeTheFirstKey: what is said while there is no data key, and that the same blob mends it.
func TestKeeperBeforeTheFirstKey(t *testing.T) {
	for name, test := range map[string]struct {
		secret any
		want   string
	}{
		"no Secret":                    {secrets.ErrMissing, "Pending SecretNotFound"},
		"a Secret that cannot be read": {errors.New("permission denied"), "Pending SecretUnreadable"},
		"a Secret without a blob":      {secrets.ErrInvalid, "Refused BlobInvalid"},
	} {
		t.Run(name, func(t *testing.T) {
			withKeeper(t, []string{"orders"}, func(b *bench) {
				k := b.keeper("orders")
				b.source["orders"], b.service.refuse["o1"] = "o1", denied
				b.run(k, time.Nanosecond)
				b.source["orders"] = test.secret
				b.run(k, time.Hour)
				b.wants("orders", test.want)
				if len(b.service.asked) != 1 {
					b.Errorf("asked %d times, want no more than before", len(b.service.asked))
				}
				b.source["orders"], b.service.refuse = "o1", nil
				b.run(k, pollInterval)
				b.wants("orders", "plaintext of o1")
			})
		})
	}
}

func TestKeeperLogsOnce(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		b.source["orders"] = "o1"
		b.service.refuse["o1"] = denied
		k := b.keeper("orders")
		b.run(k, time.Hour)
		b.service.refuse = nil
		b.run(k, time.Hour)
		b.source["orders"] = secrets.ErrInvalid
		b.run(k, time.Hour)
		if n := strings.Count(b.logs.String(), "\n"); n != 3 {
			b.Errorf("got %d lines, want one each of refused, issued and kept:\n%s", n, b.logs)
		}
	})
}

func TestKeeperDestroysWhatItReplaces(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		b.source["orders"] = "o1"
		b.run(k, time.Nanosecond)
		_, g := b.store.Get("orders", 0) // a reader that is not done
		read := g.Issued
		b.source["orders"] = "o2"
		b.run(k, time.Nanosecond)
		if read.Plaintext.IsZero() {
			b.Error("a plaintext was destroyed under its reader")
		}
		read.Release()
		if !read.Plaintext.IsZero() {
			b.Error("a plaintext outlived its last reader")
		}
	})
}

// TestNothingPrints gives everything that holds a plaintext to everything that prints.
func TestNothingPrints(t *testing.T) {
	plaintext := []byte("0123456789abcdef0123456789ABCDEF")
	key := sidecartest.IssuedKey(t, "orders", plaintext)
	asked := &keptGeneration{Generation: key.Generation}
	tended := &keptKey{name: "orders", generations: []*keptGeneration{asked}, newest: asked, current: asked}
	for name, holder := range map[string]any{
		"a generation": asked, "a generation itself": *asked, "one to ask for": wanted{asked, tended}, "those to ask for": []wanted{{asked, tended}},
		"a data key": tended, "a data key itself": *tended, "a keeper": &Keeper{kept: map[string]*keptKey{"orders": tended}},
		"what was opened": keyservice.Opened{Plaintext: key.Issued.Plaintext}, "a pointer to it": &keyservice.Opened{Plaintext: key.Issued.Plaintext},
	} {
		secrettest.CheckPrints(t, name, holder, map[string][]byte{"plaintext": plaintext})
	}
}
