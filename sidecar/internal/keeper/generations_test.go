package keeper

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
)

var (
	outage   = status.Error(codes.Unavailable, "away")
	disabled = status.Error(codes.FailedPrecondition, "disabled")
	unknown  = status.Error(codes.NotFound, "no such version")
	closed   = status.Error(codes.InvalidArgument, "does not open")
)

// TestKeeperAndGenerations: what becomes of each generation when the Secret changes. 0 is the one that is answered where none is
// asked for.
func TestKeeperAndGenerations(t *testing.T) {
	type wants map[uint32]string
	for name, test := range map[string]struct {
		before, after any
		refuse        map[string]error // from the change on
		asked         []string         // by the change
		want          wants
	}{
		"several from the start": {
			nil, generations{1: "a", 2: "b", 4: "d"}, nil, []string{"d b a "},
			wants{0: "plaintext of d", 1: "plaintext of a", 2: "plaintext of b", 3: "", 4: "plaintext of d"},
		},
		"an older one refused from the start": {
			nil, generations{1: "a", 2: "b", 3: "c"}, map[string]error{"a": denied, "b": closed}, []string{"c b a "},
			wants{0: "plaintext of c", 1: "Refused AccessDenied", 2: "Refused BlobRefused", 3: "plaintext of c"},
		},
		"an older one in an outage from the start": {
			nil, generations{1: "a", 2: "b"}, map[string]error{"a": outage}, nil,
			wants{0: "plaintext of b", 1: "Pending KeyServiceUnavailable"},
		},
		"the entry of an older one broken from the start": {
			nil, generations{1: secrets.ErrInvalid, 2: "b"}, nil, []string{"b "},
			wants{0: "plaintext of b", 1: "Refused BlobInvalid"},
		},
		"the entry of an older one not readable from the start": {
			nil, generations{1: errors.New("input/output error"), 2: "b"}, nil, []string{"b "},
			wants{0: "plaintext of b", 1: "Pending SecretUnreadable"},
		},
		"the newest entry broken from the start": {
			nil, generations{1: "a", newestBroken: secrets.ErrInvalid}, nil, []string{"a "},
			wants{0: "Refused BlobInvalid", 1: "plaintext of a", 2: "Refused BlobInvalid"},
		},
		"the newest refused from the start, which tells of all": {
			nil, generations{1: "a", 2: "b"}, map[string]error{"b": denied}, []string{"b a "},
			wants{0: "Refused AccessDenied", 1: "Refused AccessDenied", 2: "Refused AccessDenied", 3: "Refused AccessDenied"},
		},
		"the newest from the start is of a version that is not known": {
			nil, generations{1: "a", 2: "b"}, map[string]error{"b": unknown}, nil,
			wants{0: "Refused MasterKeyNotFound", 1: "plaintext of a", 2: "Refused MasterKeyNotFound"},
		},
		"a new generation": {
			generations{1: "a", 2: "b"}, generations{1: "a", 2: "b", 3: "c"}, nil, []string{"c "},
			wants{0: "plaintext of c", 1: "plaintext of a", 2: "plaintext of b", 3: "plaintext of c"},
		},
		"a new generation in an outage": {
			generations{1: "a", 2: "b"}, generations{1: "a", 2: "b", 3: "c"}, map[string]error{"c": outage}, nil,
			wants{0: "plaintext of b", 1: "plaintext of a", 2: "plaintext of b", 3: "Pending KeyServiceUnavailable"},
		},
		"a new generation in an outage, and the one before dropped": {
			generations{1: "a", 2: "b"}, generations{1: "a", 3: "c"}, map[string]error{"c": outage}, nil,
			wants{0: "plaintext of b", 1: "plaintext of a", 2: "plaintext of b", 3: "Pending KeyServiceUnavailable"},
		},
		"a new generation, and the one before dropped": {
			generations{1: "a", 2: "b"}, generations{1: "a", 3: "c"}, nil, []string{"c "},
			wants{0: "plaintext of c", 1: "plaintext of a", 2: "", 3: "plaintext of c"},
		},
		"a new generation that does not open": {
			generations{1: "a"}, generations{1: "a", 2: "b"}, map[string]error{"b": closed}, nil,
			wants{0: "plaintext of a", 1: "plaintext of a", 2: "Refused BlobRefused"},
		},
		"a new generation that is denied": {
			generations{1: "a", 2: "b"}, generations{1: "a", 2: "b", 3: "c"}, map[string]error{"c": denied}, nil,
			wants{0: "Refused AccessDenied", 1: "Refused AccessDenied", 2: "Refused AccessDenied", 3: "Refused AccessDenied"},
		},
		"a new generation of a disabled key, and the one before dropped": {
			generations{1: "a", 2: "b"}, generations{1: "a", 3: "c"}, map[string]error{"c": disabled}, nil,
			wants{0: "Refused MasterKeyState", 1: "Refused MasterKeyState", 2: "Refused MasterKeyState", 3: "Refused MasterKeyState"},
		},
		"a new generation of a version that is not known": {
			generations{1: "a"}, generations{1: "a", 2: "b"}, map[string]error{"b": unknown}, nil,
			wants{0: "Refused MasterKeyNotFound", 1: "plaintext of a", 2: "Refused MasterKeyNotFound"},
		},
		"a rewrap of all": {
			generations{1: "a", 2: "b"}, generations{1: "a2", 2: "b2"}, nil, []string{"b2 a2 "},
			wants{0: "plaintext of b2", 1: "plaintext of a2", 2: "plaintext of b2"},
		},
		"a rewrap of all in an outage": {
			generations{1: "a", 2: "b"}, generations{1: "a2", 2: "b2"}, map[string]error{"a2": outage, "b2": outage}, nil,
			wants{0: "plaintext of b", 1: "plaintext of a", 2: "plaintext of b"},
		},
		"a rewrap of which one does not open": {
			generations{1: "a", 2: "b"}, generations{1: "a2", 2: "b2"}, map[string]error{"a2": closed}, nil,
			wants{0: "plaintext of b2", 1: "plaintext of a", 2: "plaintext of b2"},
		},
		"a rewrap of which an older one is denied": {
			generations{1: "a", 2: "b", 3: "c"}, generations{1: "a2", 2: "b2", 3: "c"}, map[string]error{"b2": denied}, nil,
			wants{0: "plaintext of c", 1: "plaintext of a2", 2: "Refused AccessDenied", 3: "plaintext of c"},
		},
		"a rewrap of which the newest is denied": {
			generations{1: "a", 2: "b"}, generations{1: "a2", 2: "b2"}, map[string]error{"b2": denied}, nil,
			wants{0: "Refused AccessDenied", 1: "Refused AccessDenied", 2: "Refused AccessDenied"},
		},
		"an older one dropped": {
			generations{1: "a", 2: "b", 3: "c"}, generations{2: "b", 3: "c"}, nil, nil,
			wants{0: "plaintext of c", 1: "", 2: "plaintext of b", 3: "plaintext of c"},
		},
		"an older Secret": {
			generations{1: "a", 2: "b"}, generations{1: "a"}, nil, nil,
			wants{0: "plaintext of a", 1: "plaintext of a", 2: ""},
		},
		"the entry of an older one broken": {
			generations{1: "a", 2: "b"}, generations{1: secrets.ErrInvalid, 2: "b"}, nil, nil,
			wants{0: "plaintext of b", 1: "plaintext of a"},
		},
		"the newest entry broken": {
			generations{1: "a", 2: "b"}, generations{1: "a", newestBroken: secrets.ErrInvalid}, nil, nil,
			wants{0: "plaintext of b", 1: "plaintext of a", 2: "plaintext of b"},
		},
		"no Secret any more": {
			generations{1: "a", 2: "b"}, secrets.ErrMissing, nil, nil,
			wants{0: "plaintext of b", 1: "plaintext of a", 2: "plaintext of b", 3: ""},
		},
		"a Secret with a context that is none": {
			generations{1: "a", 2: "b"}, secrets.ErrInvalid, nil, nil,
			wants{0: "plaintext of b", 1: "plaintext of a", 2: "plaintext of b"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			withKeeper(t, []string{"orders"}, func(b *bench) {
				k := b.keeper("orders")
				if test.before != nil {
					b.source["orders"] = test.before
					b.run(k, time.Nanosecond)
				}
				b.source["orders"], b.service.refuse, b.service.asked = test.after, test.refuse, nil
				b.run(k, time.Nanosecond)
				for generation, want := range test.want {
					b.wantsGeneration("orders", generation, want)
				}
				if diff := cmp.Diff(test.asked, b.service.asked); test.refuse == nil && diff != "" {
					b.Errorf("asked (-want +got):\n%s", diff)
				}
				if _, isError := test.after.(error); isError {
					return
				}

				// Once nothing stands in the way, the Secret is what is answered.
				b.service.refuse = nil
				b.run(k, 3*olderRetry)
				for generation, blob := range test.after.(generations) {
					if text, ok := blob.(string); ok {
						b.wantsGeneration("orders", generation, "plaintext of "+text)
					}
				}
			})
		})
	}
}

// A generation that is not there yet is known no more when its Secret is gone, and comes back with it.
func TestKeeperForgetsWithTheSecret(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		secret := generations{1: "a", 2: "b", 3: "c"}
		b.source["orders"], b.service.refuse = secret, map[string]error{"a": outage, "c": outage}
		b.run(k, time.Nanosecond)
		b.wants("orders", "Pending KeyServiceUnavailable")
		b.source["orders"] = secrets.ErrMissing
		b.run(k, time.Minute)
		b.wants("orders", "Pending SecretNotFound")
		b.wantsGeneration("orders", 1, "Pending SecretNotFound") // as far as can be told
		b.wantsGeneration("orders", 2, "plaintext of b")
		if n := len(b.store.Now().ByName["orders"].Generations); n != 1 {
			b.Errorf("%d generations are listed", n)
		}
		b.source["orders"], b.service.refuse = secret, nil
		b.run(k, pollInterval)
		b.wantsGeneration("orders", 0, "plaintext of c")
		b.wantsGeneration("orders", 1, "plaintext of a")
		b.wantsGeneration("orders", 2, "plaintext of b")
	})
}

// Whoever is denied the newest generation is not asked about the others, and has them with the newest one when that is allowed.
func TestKeeperAsksNoMoreThanNeededOfTheDenied(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		b.source["orders"] = generations{1: "a", 2: secrets.ErrInvalid, 3: "c"}
		b.service.refuse = map[string]error{"c": denied}
		b.run(k, time.Hour)
		b.source["orders"] = generations{1: "a2", 2: secrets.ErrInvalid, 3: "c"}
		b.run(k, time.Hour)
		for i, asked := range b.service.asked {
			if want := "c "; i > 0 && asked != want {
				b.Fatalf("call %d: got %q, want %q", i, asked, want)
			}
		}
		b.service.refuse = nil
		b.service.meanwhile = func() { b.wants("orders", "Refused AccessDenied") }
		b.run(k, refusalRetry)
		b.wants("orders", "plaintext of c")
		b.wantsGeneration("orders", 1, "plaintext of a2")
		b.wantsGeneration("orders", 2, "Refused BlobInvalid")
	})
}

// Who is denied no more has the older generations even if the newest is refused for itself: they waited for an answer, and not for that one.
func TestKeeperAsksForOlderGenerationsAfterADenial(t *testing.T) {
	for name, test := range map[string]struct {
		newest any   // its entry
		refuse error // of its blob
		want   string
	}{
		"and the version of the newest is gone": {"b", unknown, "Refused MasterKeyNotFound"},
		"and the newest does not open":          {"b", closed, "Refused BlobRefused"},
		"and the entry of the newest is broken": {secrets.ErrInvalid, nil, "Refused BlobInvalid"},
	} {
		t.Run(name, func(t *testing.T) {
			withKeeper(t, []string{"orders"}, func(b *bench) {
				k := b.keeper("orders")
				b.source["orders"] = generations{1: "a", 2: "b"}.secret()
				b.run(k, time.Nanosecond)
				b.service.refuse = map[string]error{"a": disabled, "b": disabled}
				b.run(k, time.Minute)
				b.wantsGeneration("orders", 1, "Refused MasterKeyState")
				b.service.refuse = map[string]error{"b": test.refuse}
				if entry, broken := test.newest.(error); broken {
					b.source["orders"] = generations{1: "a", newestBroken: entry}.secret()
				}
				b.run(k, refusalRetry)
				b.wants("orders", test.want)
				b.wantsGeneration("orders", 1, "plaintext of a")
			})
		})
	}
}

// What ended a generation is not all that there is to say of it: its entry may have been broken before.
func TestKeeperTellsOfBrokenEntriesOfTheDenied(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		b.source["orders"] = generations{1: "a", 2: "b"}.secret()
		b.run(k, time.Nanosecond)
		b.source["orders"] = generations{1: secrets.ErrInvalid, 2: "b2"}.secret()
		b.service.refuse = map[string]error{"b2": denied}
		b.run(k, time.Nanosecond)
		b.wantsGeneration("orders", 1, "Refused AccessDenied")
		b.service.refuse = nil
		b.run(k, refusalRetry)
		b.wantsGeneration("orders", 0, "plaintext of b2")
		b.run(k, pollInterval)
		b.wantsGeneration("orders", 1, "Refused BlobInvalid")
	})
}

// A generation that was denied as an older one speaks for all of them once it is the newest: by the answer of then.
func TestKeeperAndAnOlderSecretOfTheDenied(t *testing.T) {
	for name, test := range map[string]struct {
		now  error
		want []string // of 0, 1 and 2
	}{
		"still denied":        {denied, []string{"Refused AccessDenied", "Refused AccessDenied", "Refused AccessDenied"}},
		"allowed by now":      {nil, []string{"plaintext of b", "plaintext of a2", "plaintext of b"}},
		"no answer to be had": {outage, []string{"Refused AccessDenied", "plaintext of a", "Refused AccessDenied"}},
	} {
		t.Run(name, func(t *testing.T) {
			withKeeper(t, []string{"orders"}, func(b *bench) {
				k := b.keeper("orders")
				b.source["orders"] = generations{1: "a", 2: "b", 3: "c"}.secret()
				b.service.refuse = map[string]error{"b": denied}
				b.run(k, time.Nanosecond)
				b.wantsGeneration("orders", 2, "Refused AccessDenied")
				b.service.refuse = map[string]error{"b": test.now, "a2": test.now}
				b.source["orders"] = generations{1: "a2", 2: "b"}.secret()
				b.run(k, time.Nanosecond)
				for number, want := range test.want {
					b.wantsGeneration("orders", uint32(number), want)
				}
				b.service.refuse = nil
				b.run(k, time.Minute)
				for number, want := range []string{"plaintext of b", "plaintext of a2", "plaintext of b"} {
					b.wantsGeneration("orders", uint32(number), want)
				}
			})
		})
	}
}

// All generations are answered with what the Secret says that they are bound to.
func TestKeeperAnswersWithWhatBlobsAreBoundTo(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		for _, tenant := range []string{"a", "b"} {
			secret := generations{1: "a", 2: "b"}.secret()
			secret.Newest.EncryptionContext = map[string]string{"tenant": tenant}
			secret.Older[0].EncryptionContext = secret.Newest.EncryptionContext
			b.source["orders"] = secret
			b.run(k, time.Nanosecond)
			for number := range uint32(3) {
				_, g := b.store.Get("orders", number)
				body := string(keystore.JSON{Issued: g.Issued}.AppendTo(nil))
				g.Issued.Release()
				if want := `,"encryptionContext":{"tenant":"` + tenant + `"}}` + "\n"; !strings.HasSuffix(body, want) {
					b.Errorf("generation %d of tenant %s: its answer lacks that", number, tenant)
				}
			}
		}
	})
}

// numbered are that many generations of a name.
func numbered(name string, n int) generations {
	g := generations{}
	for i := 1; i <= n; i++ {
		g[uint32(i)] = fmt.Sprintf("%s.%d", name, i)
	}
	return g
}

// A hundred blobs are a batch. The newest of all data keys are in the first, and all is published together.
func TestKeeperAsksInBatches(t *testing.T) {
	names := []string{"orders", "payments", "users"}
	withKeeper(t, names, func(b *bench) {
		for _, name := range names {
			b.source[name] = numbered(name, secrets.MaxGenerations)
		}
		b.service.meanwhile = func() {
			b.wants("orders", "Pending Starting")
			b.wantsGeneration("users", 1, "Pending Starting")
		}
		b.run(b.keeper(names...), time.Nanosecond)
		var sizes []int
		for _, asked := range b.service.asked {
			sizes = append(sizes, len(strings.Fields(asked)))
		}
		if diff := cmp.Diff([]int{100, 100, 100}, sizes); diff != "" {
			b.Errorf("batches (-want +got):\n%s", diff)
		}
		if want := "orders.100 payments.100 users.100 orders.99 "; !strings.HasPrefix(b.service.asked[0], want) {
			b.Errorf("the first batch is %.60q", b.service.asked[0])
		}
		for _, name := range names {
			b.wants(name, "plaintext of "+name+".100")
			for n := 1; n <= secrets.MaxGenerations; n++ {
				b.wantsGeneration(name, uint32(n), fmt.Sprintf("plaintext of %s.%d", name, n))
			}
		}
	})
}

// A pod waits for the newest generations alone, however slow the key service is with the others.
func TestKeeperPublishesBeforeAllIsAnswered(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		b.source["orders"], b.source["payments"] = numbered("orders", secrets.MaxGenerations), numbered("payments", secrets.MaxGenerations)
		b.service.meanwhile = func() {
			if b.pass(2 * patience); len(b.service.asked) == 1 {
				b.wants("orders", "plaintext of orders.100")
				b.wants("payments", "plaintext of payments.100")
				b.wantsGeneration("payments", 1, "Pending Starting")
			}
		}
		b.run(b.keeper("orders", "payments"), 5*patience)
		b.wantsGeneration("payments", 1, "plaintext of payments.1")
		if len(b.service.asked) != 2 {
			b.Errorf("got %d calls", len(b.service.asked))
		}
	})
}

// After a call that failed nothing more is asked for before its time, and what was answered before is published.
func TestKeeperKeepsWhatCameBeforeAnOutage(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		b.source["orders"], b.source["payments"] = numbered("orders", secrets.MaxGenerations), numbered("payments", secrets.MaxGenerations)
		k := b.keeper("orders", "payments")
		b.service.meanwhile = func() {
			if len(b.service.asked) == 1 {
				b.service.all = status.Error(codes.ResourceExhausted, "too many calls")
			}
		}
		b.run(k, time.Nanosecond)
		b.wants("payments", "plaintext of payments.100")
		b.wantsGeneration("payments", 1, "Pending KeyServiceUnavailable")
		if len(b.service.asked) != 2 {
			b.Errorf("got %d calls", len(b.service.asked))
		}
		b.service.all, b.service.meanwhile = nil, nil
		b.run(k, lastRetry)
		b.wantsGeneration("payments", 1, "plaintext of payments.1")
		if len(b.service.asked) != 3 {
			b.Errorf("got %d calls, want one more", len(b.service.asked))
		}
	})
}

// The key service answers a pod only so many requests that it refuses. Older generations that are lost must not use that up.
func TestKeeperAsksSlowlyForLostGenerations(t *testing.T) {
	names := []string{"orders", "payments", "users"}
	withKeeper(t, names, func(b *bench) {
		b.service.refuse = map[string]error{}
		for _, name := range names {
			b.source[name] = numbered(name, secrets.MaxGenerations)
			for i := range secrets.MaxGenerations - 1 {
				b.service.refuse[fmt.Sprintf("%s.%d", name, i+1)] = unknown
			}
		}
		k := b.keeper(names...)
		b.run(k, time.Nanosecond)
		b.service.asked, b.service.when = nil, nil
		b.run(k, time.Hour)
		for i, asked := range b.service.asked {
			if n := len(strings.Fields(asked)); n > kmsv1.MaxBatch {
				b.Errorf("call %d is for %d", i, n)
			}
		}
		if n := len(b.service.asked); n > 200 {
			b.Errorf("got %d calls in an hour", n)
		}
		again := map[string]int{}
		for _, asked := range b.service.asked {
			for blob := range strings.FieldsSeq(asked) {
				again[blob]++
			}
		}
		for blob, n := range again {
			if n < 10 || n > 60 {
				b.Errorf("%s was asked for %d times in an hour", blob, n)
			}
		}
		if len(again) != len(b.service.refuse) {
			b.Errorf("%d were asked for again, want %d", len(again), len(b.service.refuse))
		}
		b.service.refuse = nil
		b.run(k, 10*time.Minute)
		b.wantsGeneration("users", 1, "plaintext of users.1")
	})
}

func TestKeeperLogsOfGenerationsInFewLines(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		secret := numbered("orders", 9)
		secret[8] = fmt.Errorf("entry 8: %w", secrets.ErrInvalid)
		b.source["orders"] = secret
		b.service.refuse = map[string]error{"orders.7": closed, "orders.5": closed, "orders.4": outage}
		b.run(k, time.Hour)
		delete(secret, 1)
		delete(secret, 2)
		b.run(k, time.Hour)
		delete(b.service.refuse, "orders.4")
		b.run(k, time.Hour)
		b.service.refuse = nil
		b.run(k, time.Hour)
		var got []string
		for line := range strings.Lines(b.logs.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), `"level":`)
			got = append(got, line)
		}
		want := []string{
			`"WARN","msg":"older generations not issued","dataKey":"orders","generations":[8],"reason":"BlobInvalid",` +
				`"message":"entry 8: does not hold this data key"}`,
			`"INFO","msg":"data key issued","dataKey":"orders","generation":9,"keyVersion":1}`,
			`"WARN","msg":"older generations not issued","dataKey":"orders","generations":[7,5],"reason":"BlobRefused",` +
				`"message":"does not open"}`,
			`"INFO","msg":"older generations issued","dataKey":"orders","generations":[6,3,2,1]}`,
			`"WARN","msg":"older generations not issued","dataKey":"orders","generations":[4],"reason":"KeyServiceUnavailable",` +
				`"message":"the key service answers Unavailable: away"}`,
			`"INFO","msg":"generations dropped","dataKey":"orders","generations":[2,1]}`,
			`"INFO","msg":"older generations issued","dataKey":"orders","generations":[4]}`,
			`"INFO","msg":"older generations issued","dataKey":"orders","generations":[7,5]}`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			b.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// ignoringSource adds something that is ignored to every Secret.
type ignoringSource struct {
	fakeSource
	ignored *[]string
}

func (s ignoringSource) Read(name string) (*secrets.Secret, error) {
	secret, err := s.fakeSource.Read(name)
	if err == nil {
		secret.Ignored = *s.ignored
	}
	return secret, err
}

func TestKeeperLogsWhatIsIgnoredOnce(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		ignored := []string{"entry x: must be y"}
		k := New([]string{"orders"}, ignoringSource{b.source, &ignored}, b.service, b.store, usual, b.logs.Logger())
		b.source["orders"] = "o1"
		b.run(k, time.Hour)
		ignored = []string{"entry x: must be y", "entry z: must be y"}
		b.run(k, time.Hour)
		for _, sentence := range ignored {
			if n := strings.Count(b.logs.String(), sentence); n != 1 {
				b.Errorf("%q was logged %d times:\n%s", sentence, n, b.logs)
			}
		}
		b.wants("orders", "plaintext of o1")
	})
}

// TestKeeperOverAnyHistory changes Secret and key service at random. What was served is served on, at every moment at which anybody
// could ask, unless it was dropped or denied; and once nothing stands in the way, the Secret is what is answered.
func TestKeeperOverAnyHistory(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			withKeeper(t, []string{"orders"}, func(b *bench) {
				r := rand.New(rand.NewPCG(seed, 0))
				k := b.keeper("orders")
				h := &history{generations: generations{1: "1.0"}}
				served, servesOne := map[uint32]bool{}, false
				check := func() {
					for n := range served {
						if !strings.HasPrefix(b.published("orders", n), "plaintext of "+fmt.Sprint(n, ".")) {
							b.Errorf("generation %d: got %q", n, b.published("orders", n))
						}
					}
					if servesOne && !strings.HasPrefix(b.published("orders", 0), "plaintext of") {
						b.Errorf("none asked for: got %q", b.published("orders", 0))
					}
				}
				b.service.meanwhile, b.service.whileRenewing = check, check
				for step := range 60 {
					h.change(r)
					b.source["orders"] = h.secret(r)
					b.service.all, b.service.refuse = nil, map[string]error{}
					denies := false
					for n, blob := range h.generations {
						switch r.IntN(8) {
						case 0:
							b.service.refuse[blob.(string)] = outage
						case 1:
							b.service.refuse[blob.(string)] = closed
						case 2:
							if r.IntN(3) > 0 {
								break
							}
							b.service.refuse[blob.(string)] = denied
							delete(served, n)
							servesOne = false // it may be the one
							// The newest that is known, the last or one before it, is denied for all.
							denies = denies || n == h.last || len(served) == 0 || n > slices.Max(slices.Collect(maps.Keys(served)))
						}
					}
					if r.IntN(6) == 0 {
						b.service.all = outage
					}
					if denies { // which ends them
						clear(served)
					}
					for n := range served {
						if _, ok := h.generations[n]; !ok {
							delete(served, n)
						}
					}
					b.run(k, time.Duration(r.IntN(30))*time.Second+1)
					check()
					b.checkWiped()
					if b.Failed() {
						b.Fatalf("seed %d, step %d: %v", seed, step, b.source["orders"])
					}
					clear(served)
					servesOne = strings.HasPrefix(b.published("orders", 0), "plaintext of")
					for n := range h.generations {
						if strings.HasPrefix(b.published("orders", n), "plaintext of") {
							served[n] = true
						}
					}
				}
				b.source["orders"], b.service.all, b.service.refuse = h.generations, nil, nil
				b.run(k, 5*time.Minute)
				for n := range h.last + 2 {
					want := ""
					if blob, ok := h.generations[n]; ok {
						want = fmt.Sprint("plaintext of ", blob)
					}
					if n == 0 {
						want = fmt.Sprint("plaintext of ", h.generations[h.last])
					}
					b.wantsGeneration("orders", n, want)
				}
			})
		})
	}
}

// history is the generations of a data key as a manager keeps them.
type history struct {
	generations generations
	last        uint32
	wraps       int
}

// change rotates, drops, rewraps, or does nothing.
func (h *history) change(r *rand.Rand) {
	h.last = slices.Max(slices.Collect(maps.Keys(h.generations)))
	h.wraps++
	switch r.IntN(5) {
	case 0:
		h.last++
		h.generations[h.last] = fmt.Sprintf("%d.%d", h.last, h.wraps)
	case 1:
		if oldest := slices.Min(slices.Collect(maps.Keys(h.generations))); oldest != h.last {
			delete(h.generations, oldest)
		}
	case 2:
		for n := range h.generations {
			h.generations[n] = fmt.Sprintf("%d.%d", n, h.wraps)
		}
	}
}

// secret is what becomes of them in a Secret that people edit and the kubelet mounts.
func (h *history) secret(r *rand.Rand) any {
	switch r.IntN(10) {
	case 0:
		return secrets.ErrMissing
	case 1:
		return secrets.ErrInvalid
	}
	secret := maps.Clone(h.generations)
	for n := range secret {
		if r.IntN(8) > 0 {
			continue
		}
		if n == h.last {
			delete(secret, n)
			n = newestBroken
		}
		secret[n] = secrets.ErrInvalid
	}
	return secret
}
