package v1alpha1

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestAliasHolder(t *testing.T) {
	const alias = "orders"
	begin := metav1.NewTime(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	type change func(*MasterKey)
	// The UIDs sort in another order than the names.
	uids := map[string]types.UID{"a": "3", "b": "1", "c": "4", "d": "2"}
	// key claims the alias, and is as many seconds younger than others.
	key := func(name string, age int, changes ...change) MasterKey {
		k := MasterKey{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: uids[name], CreationTimestamp: metav1.NewTime(begin.Add(time.Duration(age) * time.Second))},
			Spec:       MasterKeySpec{Aliases: []string{"own-" + name, alias}},
		}
		for _, c := range changes {
			c(&k)
		}
		return k
	}
	has := func(k *MasterKey) { k.Status.Aliases = []string{alias} }
	hasOthers := func(k *MasterKey) { k.Status.Aliases = []string{"own-" + k.Name, "orders-prod", "Orders"} }
	drops := func(k *MasterKey) { k.Spec.Aliases = k.Spec.Aliases[:1] }
	destroyed := func(k *MasterKey) { k.Status.State = MasterKeyStateDestroyed }
	inState := func(state MasterKeyState) change {
		return func(k *MasterKey) { k.Spec.State, k.Status.State = state, state }
	}
	deleted := func(k *MasterKey) { k.DeletionTimestamp = &begin }
	for name, c := range map[string]struct {
		keys []MasterKey
		want string // the name of the holder; empty: there is none
	}{
		"no key at all":                               {nil, ""},
		"no key claims it":                            {[]MasterKey{key("a", 0, drops), key("b", 1, drops)}, ""},
		"one key claims it":                           {[]MasterKey{key("a", 0, drops), key("b", 1), key("c", 2, drops)}, "b"},
		"nobody has it yet: the oldest":               {[]MasterKey{key("c", 1), key("b", 0), key("a", 2)}, "b"},
		"of the same second: the first UID":           {[]MasterKey{key("c", 0), key("a", 0), key("b", 0)}, "b"},
		"an older key claims it later":                {[]MasterKey{key("a", 0), key("b", 1, has)}, "b"},
		"an older key claims it, and one of the same": {[]MasterKey{key("a", 0), key("b", 1), key("c", 1, has)}, "c"},
		"another alias that a key has does not count": {[]MasterKey{key("a", 1, hasOthers), key("b", 0)}, "b"},
		"two have it by their status: the oldest":     {[]MasterKey{key("a", 2, has), key("b", 1, has), key("c", 0)}, "b"},
		"the holder lets it go":                       {[]MasterKey{key("a", 1), key("b", 0, has, drops)}, "a"},
		"the holder lets it go, and three wait":       {[]MasterKey{key("a", 3), key("b", 0, has, drops), key("c", 2), key("d", 1)}, "d"},
		"the holder lets it go, and nobody waits":     {[]MasterKey{key("a", 1, drops), key("b", 0, has, drops)}, ""},
		"a status alone gives nothing":                {[]MasterKey{key("a", 0, has, drops)}, ""},
		"the holder is Destroyed":                     {[]MasterKey{key("a", 0, has, destroyed), key("b", 1)}, "b"},
		"all that claim it are Destroyed":             {[]MasterKey{key("a", 0, destroyed), key("b", 1, has, destroyed)}, ""},
		"the holder is being deleted":                 {[]MasterKey{key("a", 0), key("b", 1, has, deleted)}, "b"},
		"the oldest is being deleted":                 {[]MasterKey{key("a", 0, deleted), key("b", 1)}, "a"},
		"the holder is Disabled":                      {[]MasterKey{key("a", 0), key("b", 1, has, inState(MasterKeyStateDisabled))}, "b"},
		"the holder is PendingDeletion":               {[]MasterKey{key("a", 0), key("b", 1, has, inState(MasterKeyStatePendingDeletion))}, "b"},
		"the oldest is PendingDeletion":               {[]MasterKey{key("a", 0, inState(MasterKeyStatePendingDeletion)), key("b", 1)}, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			permutations(c.keys, func(keys []MasterKey) {
				got := ""
				if holder := AliasHolder(alias, keys); holder != nil {
					got = holder.Name
				}
				if got != c.want {
					t.Errorf("of %v: got %q, want %q", names(keys), got, c.want)
				}
				holders := AliasHolders{}
				for i := range keys {
					holders.Add(&keys[i])
				}
				for i := range keys {
					k := &keys[i]
					var want []string
					if k.Status.State != MasterKeyStateDestroyed {
						want = append(want, "own-"+k.Name)
					}
					if k.Name == c.want {
						want = append(want, alias)
					}
					if got := holders.HeldBy(k); !slices.Equal(got, want) {
						t.Errorf("of %v, %s has %q, want %q", names(keys), k.Name, got, want)
					}
				}
			})
		})
	}
}

// A controller that writes what HeldBy returns changes no holder by it.
func TestAStatusThatIsWrittenMovesNoAlias(t *testing.T) {
	var keys []MasterKey
	for i, aliases := range [][]string{{"a", "b"}, {"b", "c"}, {"c", "a"}, {"d"}} {
		keys = append(keys, MasterKey{
			ObjectMeta: metav1.ObjectMeta{Name: string(rune('p' + i)), CreationTimestamp: metav1.Unix(int64(-i), 0)}, Spec: MasterKeySpec{Aliases: aliases},
		})
	}
	keys[1].Status.Aliases = []string{"b"}
	held := func() map[string][]string {
		holders, all := AliasHolders{}, map[string][]string{}
		for i := range keys {
			holders.Add(&keys[i])
		}
		for i := range keys {
			all[keys[i].Name] = holders.HeldBy(&keys[i])
		}
		return all
	}
	before := held()
	permutations([]int{0, 1, 2, 3}, func(order []int) {
		for i := range keys {
			keys[i].Status.Aliases = nil
		}
		keys[1].Status.Aliases = []string{"b"}
		for _, i := range order {
			keys[i].Status.Aliases = held()[keys[i].Name]
			for name, want := range before {
				if got := held()[name]; !slices.Equal(got, want) {
					t.Fatalf("in the order %v, after %d: %s has %q, had %q", order, i, name, got, want)
				}
			}
		}
	})
}

func names(keys []MasterKey) (list []string) {
	for _, k := range keys {
		list = append(list, k.Name)
	}
	return list
}

// permutations calls f with every order of a list.
func permutations[E any](list []E, f func([]E)) {
	var permute func(list []E, n int)
	permute = func(list []E, n int) {
		if n >= len(list)-1 {
			f(list)
			return
		}
		for i := n; i < len(list); i++ {
			next := slices.Clone(list)
			next[n], next[i] = next[i], next[n]
			permute(next, n+1)
		}
	}
	permute(list, 0)
}
