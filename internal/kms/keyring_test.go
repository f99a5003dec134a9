package kms_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// gets counts the reads of a key's Secret so far.
func gets(w *world, name string) (n int) {
	for _, c := range w.Store.Calls() {
		if c.Method == sealtest.Get && (name == "" || c.Name == name) {
			n++
		}
	}
	return n
}

func TestAReplicaFetchesWhatItHasNotSeenBeforeItSaysNo(t *testing.T) {
	w := settled(t)
	late := replica(t, w)
	open := func(d kms.DataKey, blob []byte) {
		t.Helper()
		if _, err := late.Decrypt(t.Context(), keyUser, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: d.EncryptionContext, Door: kms.DoorAWS}); err != nil {
			t.Error(err)
		}
	}
	open(orders(), w.Sealed(t, orders())) // a key that it has not seen
	w.AddVersion(t, ordersKey, 2)
	w.Later(time.Second)
	open(orders(), w.Sealed(t, orders())) // a version that it has not seen
	before := gets(w, ordersKey.KeyID)
	open(orders(), w.Sealed(t, orders()))
	if got := gets(w, ordersKey.KeyID) - before; got != 0 {
		t.Errorf("a version that is known was read %d times, want 0", got)
	}
}

func TestANewPrimaryVersionIsUsedByEveryReplicaAfterTenSeconds(t *testing.T) {
	w := settled(t)
	generate := func() int32 {
		t.Helper()
		made, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
		if err != nil {
			t.Fatal(err)
		}
		return made.KeyVersion
	}
	if got := generate(); got != 1 {
		t.Fatalf("got version %d, want 1", got)
	}
	w.AddVersion(t, ordersKey, 2)
	before := gets(w, ordersKey.KeyID)
	for range 5 {
		generate()
	}
	if got := gets(w, ordersKey.KeyID) - before; got != 0 {
		t.Errorf("the key was read %d times within ten seconds, want 0", got)
	}
	w.Clock.SetTime(begin.Add(10 * time.Second))
	if got := generate(); got != 2 {
		t.Errorf("got version %d after ten seconds, want 2", got)
	}
}

func TestAllWhoAskForAKeyAtOnceReadItOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := settled(t)
		blob := w.Sealed(t, orders())
		w = replica(t, w)
		gate := make(chan struct{})
		w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { <-gate; return sealtest.None }
		before := gets(w, ordersKey.KeyID)

		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS})
				if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // all of them wait for the store
		if got := gets(w, ordersKey.KeyID) - before; got != 1 {
			t.Errorf("the key is read %d times, want once", got)
		}
		close(gate)
		all.Wait()
	})
}

func TestOneWhoGivesUpDoesNotSpoilTheOthersLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := settled(t)
		blob := w.Sealed(t, orders())
		w = replica(t, w)
		gate := make(chan struct{})
		w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { <-gate; return sealtest.None }
		decrypt := func(ctx context.Context) error {
			_, err := w.Decrypt(ctx, app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS})
			return err
		}

		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- decrypt(ctx) }()
		synctest.Wait()
		go func() { second <- decrypt(t.Context()) }()
		synctest.Wait()
		cancel()
		if err := <-first; kms.CodeOf(err) != kms.CodeUnavailable || !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up: got %v", err)
		}
		close(gate)
		if err := <-second; err != nil {
			t.Errorf("who waited: got %v", err)
		}
	})
}

func TestNobodyWaitsForAnotherKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := settled(t)
		slow, cold := w.Sealed(t, orders()), forgedFor(t, w, otherKey)
		w = replica(t, w)
		gate := make(chan struct{})
		w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
			if c.Name == ordersKey.KeyID {
				<-gate
			}
			return sealtest.None
		}
		done := make(chan error, 1)
		go func() {
			_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: slow, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS})
			done <- err
		}()
		synctest.Wait()
		for range 2 { // loaded, and known
			if _, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: cold, Door: kms.DoorAWS}); err != nil {
				t.Error(err)
			}
		}
		select {
		case err := <-done:
			t.Errorf("the slow key was not slow: %v", err)
		default:
		}
		close(gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// forgedFor makes an unscoped blob under version 1 of a master key.
func forgedFor(t *testing.T, w *world, ref kms.MasterKeyRef) []byte {
	t.Helper()
	id, m := w.Material(t, ref)
	return forged(t, envelope.Header{Kind: envelope.KindAWS, KeyID: keyID(t, ref.KeyID), KeyVersion: 1, MaterialID: id}, m)
}

// lateAnswers is a store whose first answer is kept back: what it says was true when it was asked.
type lateAnswers struct {
	*sealtest.Store
	asked atomic.Bool
	gate  chan struct{}
}

func (s *lateAnswers) Get(ctx context.Context, name string) (seal.Secret, error) {
	secret, err := s.Store.Get(ctx, name)
	if !s.asked.Swap(true) {
		<-s.gate
	}
	return secret, err
}

func TestALoadThatBeganTooEarlyDoesNotSayNo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := settled(t)
		w.Store.Delete(ordersKey.KeyID) // it is not made yet
		slow := &lateAnswers{Store: w.Store, gate: make(chan struct{})}
		late := w.clone()
		late.Service = serviceOver(t, w, slow)
		decrypt := func(blob []byte) chan error {
			answer := make(chan error, 1)
			go func() {
				_, err := late.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: blob, Door: kms.DoorAWS})
				answer <- err
			}()
			synctest.Wait()
			return answer
		}
		early := decrypt(forged(t, envelope.Header{
			Kind: envelope.KindAWS, KeyID: keyID(t, ordersKey.KeyID), KeyVersion: 1, MaterialID: envelope.NewMaterialID(),
		}, envelope.NewMaterial()))
		if _, err := w.EnsureMasterKey(t.Context(), ordersKey, terms, ""); err != nil {
			t.Fatal(err)
		}
		joined := decrypt(forgedFor(t, w, ordersKey))
		if got := gets(w, ordersKey.KeyID); got < 1 {
			t.Fatal("nothing was read")
		}
		close(slow.gate)
		if err := <-joined; err != nil {
			t.Errorf("who asked after the key was made was told %v", err)
		}
		if got := kms.CodeOf(<-early); got != kms.CodeNotFound {
			t.Errorf("a made-up blob: got %v, want NotFound", got)
		}
	})
}

func TestASlowOldLoadDoesNotReplaceANewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := settled(t)
		slow := &lateAnswers{Store: w.Store, gate: make(chan struct{})}
		late := w.clone()
		late.Service = serviceOver(t, w, slow)
		generate := func() (int32, error) {
			made, err := late.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
			return made.KeyVersion, err
		}
		old := make(chan int32, 1)
		go func() { got, _ := generate(); old <- got }()
		synctest.Wait() // it has read version 1, and waits for the answer
		w.AddVersion(t, ordersKey, 2)
		if _, err := late.MasterKey(t.Context(), ordersKey); err != nil {
			t.Fatal(err)
		}
		close(slow.gate)
		if got := <-old; got != 1 {
			t.Fatalf("the slow one made a data key of version %d, want 1", got)
		}
		if got, err := generate(); got != 2 || err != nil {
			t.Errorf("then one was made of version %d (%v), want 2", got, err)
		}
	})
}

func TestHostileBlobsDoNotHammerTheStore(t *testing.T) {
	w := settled(t)
	good := w.Sealed(t, orders())
	w.Limits = kms.Limits{Calls: 10_000, CallsBurst: 10_000, Refusals: 10, RefusalsBurst: 100}
	w = replica(t, w)
	ask := func(token string, h envelope.Header) kms.Code {
		h.Kind = envelope.KindAWS
		_, err := w.Decrypt(t.Context(), token, kms.DecryptRequest{CiphertextBlob: forged(t, h, envelope.NewMaterial()), Door: kms.DoorAWS})
		return kms.CodeOf(err)
	}
	header := func(id envelope.KeyID) envelope.Header {
		return envelope.Header{KeyID: id, KeyVersion: 1, MaterialID: envelope.NewMaterialID()}
	}

	one := header(keyID(t, goneID))
	for range 50 {
		if got := ask(nobody, one); got != kms.CodeDenied {
			t.Fatalf("got %v, want Denied", got)
		}
	}
	if got := gets(w, goneID); got != 1 {
		t.Errorf("one unknown key was looked for %d times, want once", got)
	}
	w.Clock.SetTime(begin.Add(2 * time.Second))
	ask(nobody, one)
	if got := gets(w, goneID); got != 2 {
		t.Errorf("after two seconds it was looked for %d times in all, want twice", got)
	}

	before, codes := gets(w, ""), map[kms.Code]int{}
	for range 1000 {
		codes[ask(nobody, header(envelope.NewKeyID()))]++
	}
	if got := gets(w, "") - before; got > 100 || got < 50 {
		t.Errorf("1000 made-up keys were looked for %d times, want at most 100", got)
	}
	if codes[kms.CodeDenied] > 100 || codes[kms.CodeDenied]+codes[kms.CodeThrottled] != 1000 {
		t.Errorf("got codes %v", codes)
	}
	// All other pods go on, with keys that are loaded and with those that are not.
	if got := ask(reader, header(envelope.NewKeyID())); got != kms.CodeNotFound {
		t.Errorf("another pod of the namespace: got %v, want NotFound", got)
	}
	if _, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: good, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS}); err != nil {
		t.Errorf("an honest caller: %v", err)
	}
	// Made-up versions of a key that is there count too.
	before = gets(w, "")
	for v := range uint32(500) {
		h := header(keyID(t, ordersKey.KeyID))
		h.KeyVersion = v + 2
		ask(keyUser, h)
	}
	if got := gets(w, "") - before; got != 100 {
		t.Errorf("500 made-up versions were looked for %d times, want 100", got)
	}
}

func TestAPodThatIsAllowedNothingKeepsNobodyFromAKnownKey(t *testing.T) {
	w := settled(t)
	generate := func() {
		t.Helper()
		if _, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS}); err != nil {
			t.Error(err)
		}
	}
	generate()
	w.Clock.SetTime(begin.Add(11 * time.Second)) // it has to be read again
	for range 200 {
		h := envelope.Header{Kind: envelope.KindAWS, KeyID: envelope.NewKeyID(), KeyVersion: 1, MaterialID: envelope.NewMaterialID()}
		_, err := w.Decrypt(t.Context(), nobody, kms.DecryptRequest{CiphertextBlob: forged(t, h, envelope.NewMaterial()), Door: kms.DoorAWS})
		if err == nil {
			t.Fatal("a made-up blob was opened")
		}
	}
	before := gets(w, "")
	generate()
	if got := gets(w, "") - before; got != 1 {
		t.Errorf("the store was read %d times, want once", got)
	}
}

// A manager that has a version in memory may be the last that has it: the pods that run go on while the Secret is restored.
func TestWhatWasLoadedOpensWhateverBecomesOfTheSecret(t *testing.T) {
	backup := func(_ *testing.T, w *world, of seal.Secret) { w.Store.Put(of) }
	for name, alter := range map[string]func(t *testing.T, w *world, before seal.Secret){
		"an entry is damaged": func(_ *testing.T, w *world, _ seal.Secret) {
			w.editEntry("v1", func(b []byte) []byte { b[90] ^= 1; return b })
		},
		"an entry is gone":          func(_ *testing.T, w *world, _ seal.Secret) { w.editEntry("v1", func([]byte) []byte { return nil }) },
		"the newest entry is gone":  func(_ *testing.T, w *world, _ seal.Secret) { w.editEntry("v2", func([]byte) []byte { return nil }) },
		"an older backup is back":   backup,
		"and another version 2 too": func(t *testing.T, w *world, before seal.Secret) { backup(t, w, before); w.AddVersion(t, ordersKey, 2) },
		"all of it is gone":         func(_ *testing.T, w *world, _ seal.Secret) { w.Store.Delete(ordersKey.KeyID) },
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			before := w.Store.Secrets()[ordersKey.KeyID]
			first := w.Sealed(t, orders())
			w.AddVersion(t, ordersKey, 2)
			w.Later(time.Second)
			second := w.Sealed(t, orders())
			alter(t, w, before)
			for i := range 3 { // each time it is read anew
				w.Clock.SetTime(w.Clock.Now().Add(11 * time.Second))
				_, _ = w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
				for version, blob := range [][]byte{first, second} {
					if _, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}); err != nil {
						t.Errorf("read %d, version %d: %v", i+1, version+1, err)
					}
				}
			}
		})
	}
}

// editEntry changes an entry of the Secret of ordersKey, or takes it out.
func (w *world) editEntry(entry string, change func([]byte) []byte) {
	w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) {
		if s.Data[entry] = change(s.Data[entry]); s.Data[entry] == nil {
			delete(s.Data, entry)
		}
	})
}

// What is proved has to open after a restart too, and nothing new may depend on memory alone.
func TestWhatOnlyMemoryHasProvesNothingAndWrapsNothing(t *testing.T) {
	w := settled(t)
	before := w.Store.Secrets()[ordersKey.KeyID]
	w.AddVersion(t, ordersKey, 2)
	w.Later(time.Second)
	blob := w.Sealed(t, orders())
	w.Store.Put(before)
	w.Later(10 * time.Second)
	made, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
	if err != nil || made.KeyVersion != 1 {
		t.Errorf("got version %d, %v", made.KeyVersion, err)
	}
	if _, err := w.OpenDataKey(t.Context(), orders(), blob); !errors.Is(err, kms.ErrKeyVersionMissing) {
		t.Errorf("got %v", err)
	}
	if info, err := w.MasterKey(t.Context(), ordersKey); err != nil || info.PrimaryVersion != 1 || len(info.Versions) != 1 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestAStoreThatFailsIsUnavailableAndNotRemembered(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	w = replica(t, w)
	req := kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS}
	w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { return sealtest.Fail }
	for range 600 { // more than a pod may have refused
		if _, err := w.Decrypt(t.Context(), app, req); kms.CodeOf(err) != kms.CodeUnavailable {
			t.Fatalf("got %v, want Unavailable", err)
		}
	}
	w.Store.Hook = nil
	if _, err := w.Decrypt(t.Context(), app, req); err != nil {
		t.Errorf("when the store is back: %v", err)
	}
	w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { return sealtest.Fail }
	if _, err := w.Decrypt(t.Context(), app, req); err != nil {
		t.Errorf("a key that is known needs no store: %v", err)
	}
}

func TestAPanicOfTheStoreIsAnError(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	w = replica(t, w)
	w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { panic("sesame") }
	_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS})
	if got := kms.CodeOf(err); got != kms.CodeInternal {
		t.Errorf("got %v, want Internal", err)
	}
	if got := fmt.Sprint(err); got != "Internal: internal error: panic with a string" {
		t.Errorf("got %q: the value of a panic may be anything", got)
	}
}
