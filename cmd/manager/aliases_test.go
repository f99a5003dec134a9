package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/kms"
)

// aliasHistory is what the MasterKeys of one namespace have been, from the first to the last write.
type aliasHistory [][]v1alpha1.MasterKey

// write changes one MasterKey.
func (h *aliasHistory) write(name string, change func(*v1alpha1.MasterKey)) {
	next := slices.Clone((*h)[len(*h)-1])
	for i := range next {
		if next[i].Name == name {
			next[i] = *next[i].DeepCopy()
			change(&next[i])
		}
	}
	*h = append(*h, next)
}

// aliasView reads a history as it was after some write: a cache that has heard of that one, or the API server at the last.
type aliasView struct {
	client.Reader
	history *aliasHistory
	at      func() int
	called  func() // nil: nobody is told of a read
}

func (v aliasView) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	options := (&client.ListOptions{}).ApplyOptions(opts)
	found := slices.Clone((*v.history)[v.at()])
	if options.FieldSelector != nil {
		alias, _ := options.FieldSelector.RequiresExactMatch(controllers.IndexAlias)
		found = slices.DeleteFunc(found, func(k v1alpha1.MasterKey) bool { return !slices.Contains(k.Spec.Aliases, alias) })
	}
	list.(*v1alpha1.MasterKeyList).Items = found
	if v.called != nil {
		v.called()
	}
	return nil
}

// Claims of an alias by its two keys, and how to move it from one to the other.
const movedAlias = "orders"

func claim(k *v1alpha1.MasterKey) {
	k.Spec.Aliases = append(slices.Clone(k.Spec.Aliases), movedAlias)
}

func letGo(k *v1alpha1.MasterKey) {
	k.Spec.Aliases = slices.DeleteFunc(slices.Clone(k.Spec.Aliases), func(a string) bool { return a == movedAlias })
}

func claimants() []v1alpha1.MasterKey {
	keys := make([]v1alpha1.MasterKey, 3)
	for i, name := range []string{"blue", "green", "third"} {
		keys[i] = v1alpha1.MasterKey{
			ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: name, CreationTimestamp: metav1.Unix(int64(i), 0)},
			Spec:       v1alpha1.MasterKeySpec{Aliases: []string{"own-" + name}},
		}
	}
	claim(&keys[0])
	return keys
}

// movesOfAnAlias are the two orders of the writes that move it.
var movesOfAnAlias = map[string]struct{ letGoFirst bool }{
	"the other claims it first":   {letGoFirst: false},
	"the holder lets it go first": {letGoFirst: true},
}

// An alias goes to and fro between two keys while two replicas, which hear of each write at any time after it, are asked all the
// time. Neither answers a third key, and neither answers nothing, unless nobody has the alias or had it less than aliasAge ago.
func TestAMovingAliasIsLostBetweenTheWritesAlone(t *testing.T) {
	for name, order := range movesOfAnAlias {
		t.Run(name, func(t *testing.T) {
			const seed = 20261122
			random := rand.New(rand.NewPCG(seed, 0))
			now := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
			history := aliasHistory{claimants()}
			last := func() int { return len(history) - 1 }
			heard := make([]int, 2)
			replicas := make([]masterKeys, 2)
			for i := range replicas {
				replicas[i] = newMasterKeys(
					aliasView{history: &history, at: func() int { return heard[i] }}, aliasView{history: &history, at: last})
				replicas[i].aliases.clock = now
			}
			held := now.Now() // when somebody had the alias again
			nobody := false
			seen := map[string]int{}
			ask := func() {
				t.Helper()
				for i, m := range replicas {
					k, err := m.ByAlias(t.Context(), "team-a", movedAlias)
					switch {
					case err == nil && (k.Name == "blue" || k.Name == "green"):
						seen[k.Name]++
					case !errors.Is(err, kms.ErrMasterKeyNotFound):
						t.Fatalf("replica %d, after %d writes: got %q, %v", i, last(), k.Name, err)
					case nobody:
						seen["nothing, and nobody has it"]++
					case order.letGoFirst && now.Since(held) < aliasAge:
						seen["nothing, and nobody had it"]++
					default:
						t.Fatalf("replica %d has heard of %d of %d writes, and finds nothing %v after the last", i, heard[i], last(), now.Since(held))
					}
				}
			}
			// Anything may happen between two writes, but of the writes.
			pass := func() {
				for range random.IntN(12) {
					switch i := random.IntN(len(replicas)); random.IntN(3) {
					case 0:
						heard[i] += random.IntN(last() - heard[i] + 1)
					case 1:
						now.SetTime(now.Now().Add(time.Duration(random.IntN(1500)) * time.Millisecond))
					}
					ask()
				}
			}
			from, to := "blue", "green"
			for range 3000 {
				writes := []func(){func() { history.write(to, claim) }, func() { history.write(from, letGo) }}
				if order.letGoFirst {
					slices.Reverse(writes)
				}
				writes[0]()
				nobody = order.letGoFirst
				ask()
				pass()
				writes[1]()
				nobody, held = false, now.Now()
				ask()
				pass()
				// The controller is there, or is not, or is in the middle of it.
				for _, name := range []string{from, to, "third"} {
					if random.IntN(2) == 0 {
						history.write(name, func(k *v1alpha1.MasterKey) {
							holders := v1alpha1.AliasHolders{}
							for i := range history[last()] {
								holders.Add(&history[last()][i])
							}
							k.Status.Aliases = holders.HeldBy(k)
						})
						pass()
					}
				}
				from, to = to, from
			}
			if seen["blue"] == 0 || seen["green"] == 0 || order.letGoFirst != (seen["nothing, and nobody has it"] > 0 && seen["nothing, and nobody had it"] > 0) {
				t.Errorf("the answers were %v", seen)
			}
		})
	}
}

// The same with replicas that watch an API server, and no controller at all.
func TestAMovingAliasOnTheAPIServer(t *testing.T) {
	for name, order := range movesOfAnAlias {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			keys := map[string]*v1alpha1.MasterKey{}
			for _, k := range claimants() {
				k.Namespace, k.CreationTimestamp = p.tenant, metav1.Time{}
				if err := p.client.Create(t.Context(), &k); err != nil {
					t.Fatal(err)
				}
				keys[k.Name] = &k
			}
			now := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
			replicas := make([]masterKeys, 2)
			for i := range replicas {
				replicas[i], _ = startMasterKeys(t, p)
				replicas[i].aliases.clock = now
			}
			from, to := "blue", "green"
			for range 20 {
				var begun, over atomic.Bool // the write after which nobody may have the alias, and the 2 s after the last
				var asking sync.WaitGroup
				for i, m := range replicas {
					asking.Go(func() {
						for t.Context().Err() == nil {
							wasOver := over.Load()
							k, err := m.ByAlias(t.Context(), p.tenant, movedAlias)
							switch {
							case err == nil && k.Name == to && wasOver:
								return
							case err == nil && (k.Name == from || k.Name == to):
							case errors.Is(err, kms.ErrMasterKeyNotFound) && order.letGoFirst && begun.Load() && !wasOver:
							default:
								t.Errorf("replica %d: got %q, %v", i, k.Name, err)
								return
							}
						}
					})
				}
				write := func(name string, change func(*v1alpha1.MasterKey)) {
					change(keys[name])
					if err := p.client.Update(t.Context(), keys[name]); err != nil {
						t.Error(err)
					}
				}
				begun.Store(true)
				if order.letGoFirst {
					write(from, letGo)
					write(to, claim)
				} else {
					write(to, claim)
					write(from, letGo)
				}
				now.SetTime(now.Now().Add(aliasAge))
				over.Store(true)
				asking.Wait()
				from, to = to, from
			}
		})
	}
}

// Who joins a read of an API server that is slow does not get what it began with longer ago than answers are remembered.
func TestAnAliasIsNotReadFromASlowAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		later time.Duration
		want  error
		reads int
	}{
		"the read began less than 2 s ago": {aliasAge - 1, kms.ErrMasterKeyNotFound, 1},
		"the read began 2 s ago":           {aliasAge, nil, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				history := aliasHistory{claimants()}
				history.write("blue", letGo)
				first, reads := make(chan struct{}), 0
				m := newMasterKeys(
					aliasView{history: &history, at: func() int { return 1 }},
					aliasView{history: &history, at: func() int { return len(history) - 1 }, called: func() {
						if reads++; reads == 1 {
							<-first
						}
					}})
				ask := func() <-chan error {
					answer := make(chan error, 1)
					go func() {
						_, err := m.ByAlias(t.Context(), "team-a", movedAlias)
						answer <- err
					}()
					synctest.Wait()
					return answer
				}
				early := ask()
				history.write("green", claim)
				time.Sleep(c.later) // of the bubble's clock
				late := ask()
				close(first)
				if err := <-early; !errors.Is(err, kms.ErrMasterKeyNotFound) {
					t.Errorf("who asked first: got %v", err)
				}
				if err := <-late; !errors.Is(err, c.want) {
					t.Errorf("who asked later: got %v, want %v", err, c.want)
				}
				if reads != c.reads {
					t.Errorf("got %d reads, want %d", reads, c.reads)
				}
			})
		})
	}
}
