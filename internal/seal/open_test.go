package seal_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

var rootSecret = strings.TrimPrefix(seal.DefaultRootKey, "secret://")

func open(t *testing.T, store seal.Store) *seal.Keyring {
	t.Helper()
	k, err := sealtest.OpenEmbedded(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOpenMakesTheKeysOnceAndFindsThemAgain(t *testing.T) {
	store := &sealtest.Store{}
	first := open(t, store)
	before := store.Secrets()
	sealtest.SameKeys(t, first, open(t, store))

	if diff := cmp.Diff(before, store.Secrets()); diff != "" {
		t.Errorf("the second start changed Secrets: %s", diff)
	}
	if got := first.InstallID(); len(got) != 12 || strings.Trim(got, "0123456789abcdef") != "" {
		t.Errorf("install ID: got %q, want 12 hexadecimal digits", got)
	}
	if !first.Report().Embedded {
		t.Error("a root key in a Secret is embedded")
	}
	if !before[rootSecret].Immutable {
		t.Error("the Secret of the root key is not immutable")
	}
}

func TestOpenConvergesAfterACrashAtAnyStoreCall(t *testing.T) {
	for name, fault := range map[string]sealtest.Fault{
		"the call fails": sealtest.Fail,
		"the call is done and the answer is lost": sealtest.DoAndFail,
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				store := &sealtest.Store{}
				store.Hook = func(call int, _ sealtest.Call) sealtest.Fault {
					if call == n {
						return fault
					}
					return sealtest.None
				}
				_, err := sealtest.OpenEmbedded(t.Context(), store)
				if err == nil {
					if n < 6 {
						t.Fatalf("Open made only %d calls: has it lost one?", n-1)
					}
					return // the n-th call never came: all were tried
				}
				if !errors.Is(err, sealtest.ErrInjected) {
					t.Fatalf("call %d: got %v, want the injected error", n, err)
				}
				durable := store.Secrets()
				store.Hook = nil
				k := open(t, store)
				sealtest.SameKeys(t, k, open(t, store))
				for name, was := range durable {
					if diff := cmp.Diff(was.Data, store.Secrets()[name].Data); diff != "" {
						t.Errorf("call %d: Secret %s was there and was changed: %s", n, name, diff)
					}
				}
			}
		})
	}
}

func TestWhatAnOlderSealingKeySealedStillOpens(t *testing.T) {
	store := &sealtest.Store{}
	old := open(t, store)
	now := open(t, store)
	if err := now.Rotate(t.Context(), time.Nanosecond); err != nil {
		t.Fatal(err)
	}
	of := seal.MasterKeyVersion{KeyID: envelope.NewKeyID(), Namespace: "team-a", Name: "orders", Version: 1}
	blobs := map[uint32][]byte{} // both sealed before one is opened: whoever opens the second meets the new version, and seals by it
	for version, ring := range map[uint32]*seal.Keyring{1: old, 2: now} {
		sealed, err := ring.Seal(of, envelope.NewMaterialID(), envelope.NewMaterial())
		if err != nil {
			t.Fatal(err)
		}
		if got := ring.SealedBy(sealed); got != version {
			t.Fatalf("sealed under version %d, want %d", got, version)
		}
		blobs[version] = sealed
	}
	for version, sealed := range blobs {
		for name, opener := range map[string]*seal.Keyring{
			"the manager that rotated": now, "a manager that starts": open(t, store), "a manager that has not met the new version": old,
		} {
			if _, _, _, err := opener.Unseal(t.Context(), of.KeyID, 1, sealed); err != nil {
				t.Errorf("sealed under version %d, %s: %v", version, name, err)
			}
		}
	}
}

func TestTwoManagersThatStartAtOnceAgree(t *testing.T) {
	for name, meet := range map[string]string{
		"both are about to make the root key":     rootSecret,
		"both are about to make the sealing keys": seal.SealingKeysSecret,
	} {
		t.Run(name, func(t *testing.T) {
			store := &sealtest.Store{}
			var both sync.WaitGroup
			both.Add(2)
			store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
				if c.Method == sealtest.Create && c.Name == meet {
					both.Done()
					both.Wait()
				}
				return sealtest.None
			}
			var rings [2]*seal.Keyring
			var errs [2]error
			var done sync.WaitGroup
			for i := range rings {
				done.Go(func() { rings[i], errs[i] = sealtest.OpenEmbedded(t.Context(), store) })
			}
			done.Wait()
			if err := errors.Join(errs[:]...); err != nil {
				t.Fatal(err)
			}
			sealtest.SameKeys(t, rings[0], rings[1])
			if got := len(store.Secrets()); got != 2 {
				t.Errorf("got %d Secrets, want 2", got)
			}
		})
	}
}

func TestALostOrAlteredSecretIsNamedAndNothingIsMadeInItsPlace(t *testing.T) {
	other := &sealtest.Store{}
	open(t, other)
	// The Secret has the entry of one version; its name depends on the root key.
	v1 := func(s *sealtest.Store) string {
		for entry := range s.Secrets()[seal.SealingKeysSecret].Data {
			if strings.HasPrefix(entry, "v1.") {
				return entry
			}
		}
		t.Fatal("there is no version 1")
		return ""
	}
	editIndex := func(old, replacement string) func(*sealtest.Store) {
		return func(s *sealtest.Store) {
			s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) {
				was := string(s.Data["index"])
				s.Data["index"] = []byte(strings.Replace(was, old, replacement, 1))
				if string(s.Data["index"]) == was {
					t.Fatalf("the index has no %s", old)
				}
			})
		}
	}
	flip := func(name, entry string) func(*sealtest.Store) {
		return func(s *sealtest.Store) {
			s.Edit(name, func(secret *seal.Secret) { secret.Data[entry][len(secret.Data[entry])-1] ^= 1 })
		}
	}
	replace := func(name, entry, value string) func(*sealtest.Store) {
		return func(s *sealtest.Store) {
			s.Edit(name, func(secret *seal.Secret) { secret.Data[entry] = []byte(value) })
		}
	}
	for name, c := range map[string]struct {
		damage func(*sealtest.Store)
		secret string
		says   string
	}{
		"the root key is lost": {
			damage: func(s *sealtest.Store) { s.Delete(rootSecret) },
			secret: rootSecret, says: "is missing, but Secret datakeys-sealing-keys is wrapped by the root key in it: restore it",
		},
		"the sealing keys are lost, and there is a master key": {
			damage: func(s *sealtest.Store) {
				s.Delete(seal.SealingKeysSecret)
				s.Put(seal.Secret{Name: envelope.NewKeyID().String(), Type: "datakeys.io/master-key"})
			},
			secret: seal.SealingKeysSecret, says: "sealed under it: restore it",
		},
		"everything is lost but a master key": {
			damage: func(s *sealtest.Store) {
				s.Delete(seal.SealingKeysSecret)
				s.Delete(rootSecret)
				s.Put(seal.Secret{Name: envelope.NewKeyID().String(), Type: "datakeys.io/master-key"})
			},
			secret: seal.SealingKeysSecret, says: "sealed under it: restore it",
		},
		"the root key is another installation's": {
			damage: func(s *sealtest.Store) { s.Put(other.Secrets()[rootSecret]) },
			secret: seal.SealingKeysSecret, says: "another key is in secret://datakeys-root-key than before: bring the right one back",
		},
		"a byte of the root key is changed": {
			damage: flip(rootSecret, "key"),
			secret: seal.SealingKeysSecret, says: "does not open under root key",
		},
		"the root key is cut off": {
			damage: replace(rootSecret, "key", "short"),
			secret: rootSecret, says: "has no 32 bytes of a key in its entry key: restore",
		},
		"the root key is all zero": {
			damage: replace(rootSecret, "key", strings.Repeat("\x00", 32)),
			secret: rootSecret, says: "has no 32 bytes of a key",
		},
		"the root key's ID is no UUID": {
			damage: replace(rootSecret, "id", "root"),
			secret: rootSecret, says: "has no UUID in its entry id",
		},
		"the root key's Secret is of another type": {
			damage: func(s *sealtest.Store) { s.Edit(rootSecret, func(s *seal.Secret) { s.Type = "Opaque" }) },
			secret: rootSecret, says: `is of type "Opaque"`,
		},
		"the sealing keys' Secret is of another type": {
			damage: func(s *sealtest.Store) { s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { s.Type = "Opaque" }) },
			secret: seal.SealingKeysSecret, says: `is of type "Opaque"`,
		},
		"a byte of the sealing key is changed": {
			damage: func(s *sealtest.Store) { flip(seal.SealingKeysSecret, v1(s))(s) },
			secret: seal.SealingKeysSecret, says: ": envelope: the blob is damaged or was sealed with other associated data: one of the two was altered",
		},
		"the sealing key is another installation's": {
			damage: func(s *sealtest.Store) {
				replace(seal.SealingKeysSecret, v1(s), string(other.Secrets()[seal.SealingKeysSecret].Data[v1(other)]))(s)
			},
			secret: seal.SealingKeysSecret, says: ": wrapped by another root key, " + string(other.Secrets()[rootSecret].Data["id"]) + ": restore that root key",
		},
		"the sealing key is empty": {
			damage: func(s *sealtest.Store) { replace(seal.SealingKeysSecret, v1(s), "")(s) },
			secret: seal.SealingKeysSecret, says: "lacks an entry",
		},
		"the sealing key stands under another version": {
			damage: func(s *sealtest.Store) {
				entry := v1(s)
				s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { s.Data["v2"+entry[2:]] = s.Data[entry] })
				editIndex(`"primary":1`, `"primary":2`)(s)
			},
			secret: seal.SealingKeysSecret, says: "that does not open under root key",
		},
		"there is no version of the sealing key": {
			damage: func(s *sealtest.Store) {
				entry := v1(s)
				s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { delete(s.Data, entry) })
			},
			secret: seal.SealingKeysSecret, says: "lacks an entry",
		},
		"the sealing key's first version is lost and there is a second": {
			damage: func(s *sealtest.Store) {
				if err := open(t, s).Rotate(t.Context(), time.Nanosecond); err != nil {
					t.Fatal(err)
				}
				entry := v1(s)
				s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { delete(s.Data, entry) })
			},
			secret: seal.SealingKeysSecret, says: "lacks an entry: it has no v1.",
		},
		"the sealing key's third version is there and the primary one is the first": {
			damage: func(s *sealtest.Store) {
				entry := v1(s)
				s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { s.Data["v3"+entry[2:]] = s.Data[entry] })
			},
			secret: seal.SealingKeysSecret, says: "has sealing key 3, but its primary version is 1",
		},
		"the index is lost": {
			damage: func(s *sealtest.Store) {
				s.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { delete(s.Data, "index") })
			},
			secret: seal.SealingKeysSecret, says: "has no index that this manager can read",
		},
		"the index is a later manager's": {
			damage: editIndex(`{"primary"`, `{"shards":2,"primary"`),
			secret: seal.SealingKeysSecret, says: "has no index that this manager can read",
		},
		"the index goes on after its end": {
			damage: editIndex(`}}}`, `}}}{}`),
			secret: seal.SealingKeysSecret, says: "has more than an index",
		},
		"the index has no primary version": {
			damage: editIndex(`"primary":1`, `"primary":0`),
			secret: seal.SealingKeysSecret, says: "has an index without a primary version",
		},
		"the index has a primary version beyond all entries": {
			damage: editIndex(`"primary":1`, `"primary":4294967295`),
			secret: seal.SealingKeysSecret, says: "has an index with the primary version 4294967295",
		},
		"the index is settled on a root key that it does not list": {
			damage: editIndex(`"settledOn":"`, `"settledOn":"x`),
			secret: seal.SealingKeysSecret, says: "has an index without a primary version or the root key",
		},
		"the index names another root key": {
			damage: editIndex(`"id":"secret://`, `"id":"Secret://`),
			secret: seal.SealingKeysSecret, says: "has an index that lists root key Secret://",
		},
		"the install ID is another one": {
			damage: replace(seal.SealingKeysSecret, "installID", "0123456789ab"),
			secret: seal.SealingKeysSecret, says: "does not open",
		},
		"the install ID is malformed": {
			damage: replace(seal.SealingKeysSecret, "installID", "prod"),
			secret: seal.SealingKeysSecret, says: "has no install ID of 12 hexadecimal digits",
		},
		"the sealing key's ID is another one": {
			damage: replace(seal.SealingKeysSecret, "keyID", envelope.NewKeyID().String()),
			secret: seal.SealingKeysSecret, says: "does not open",
		},
		"the sealing key's ID is no UUID": {
			damage: replace(seal.SealingKeysSecret, "keyID", ""),
			secret: seal.SealingKeysSecret, says: "has no UUID in its entry keyID",
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := &sealtest.Store{}
			open(t, store)
			c.damage(store)
			before := store.Secrets()

			k, err := sealtest.OpenEmbedded(t.Context(), store)
			if k != nil {
				t.Error("got a keyring beside an error")
			}
			got, ok := errors.AsType[*seal.SecretError](err)
			if !ok {
				t.Fatalf("got %v, want a SecretError", err)
			}
			if got.Secret != c.secret || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one about %s that says %q", err, c.secret, c.says)
			}
			if diff := cmp.Diff(before, store.Secrets()); diff != "" {
				t.Errorf("Secrets were changed: %s", diff)
			}
		})
	}
}

func TestOpenRefusesARootKeyThatItDoesNotKnow(t *testing.T) {
	for name, c := range map[string]struct{ uri, says string }{
		"one that is not embedded":         {"file:///root-key", "only secret://NAME can be opened here"},
		"a Secret's name against the rule": {"secret://Root_Key", "must name a Secret of its own"},
		"the Secret of the sealing keys":   {"secret://datakeys-sealing-keys", "must name a Secret of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			store := &sealtest.Store{}
			_, err := seal.Config{RootKey: c.uri, Store: store}.Open(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
			if len(store.Secrets()) > 0 {
				t.Error("it made a Secret")
			}
		})
	}
}
