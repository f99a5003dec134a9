package kms_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// More callers of team-a.
const (
	neighbour = "neighbour" // nothing
	guest     = "guest"     // decrypt and generatedatakey on team-b's masterkeys/theirs
)

// crowded returns a settled world with those callers too, in which 150 refusals at once throttle a pod.
func crowded(t *testing.T) *world {
	t.Helper()
	w := settled(t)
	for _, token := range []string{neighbour, guest} {
		w.Tokens.Add(token, kmstest.Caller("team-a", token, token+"-pod"))
	}
	for _, verb := range []string{v1alpha1.VerbDecrypt, v1alpha1.VerbGenerateDataKey} {
		w.RBAC.Grant("system:serviceaccount:team-a:"+guest,
			kms.Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-b", Name: "theirs"})
	}
	w.Limits = kms.Limits{Calls: 10_000, CallsBurst: 10_000, Refusals: 5, RefusalsBurst: 150}
	return w
}

// way is a way to name a key by its ID.
type way func(w *world, token string, ref kms.MasterKeyRef) error

const scopedBlob = "by a scoped blob"

func ways(t *testing.T, w *world) map[string]way {
	t.Helper()
	info, err := w.MasterKey(t.Context(), ordersKey)
	if err != nil {
		t.Fatal(err)
	}
	install, _, _ := strings.Cut(info.ARN, "team-a")
	seals := map[string]func(envelope.Header) []byte{}
	for _, ref := range []kms.MasterKeyRef{ordersKey, theirsKey} {
		id, m := w.Material(t, ref)
		seals[ref.KeyID] = func(h envelope.Header) []byte { h.MaterialID = id; return forged(t, h, m) }
	}
	blob := func(h envelope.Header) way {
		return func(w *world, token string, ref kms.MasterKeyRef) error {
			h := h
			h.KeyID, h.KeyVersion, h.MaterialID = keyID(t, ref.KeyID), 1, envelope.NewMaterialID()
			seal := seals[ref.KeyID]
			if seal == nil {
				seal = func(h envelope.Header) []byte { return forged(t, h, envelope.NewMaterial()) }
			}
			resp, err := w.Decrypt(t.Context(), token, kms.DecryptRequest{CiphertextBlob: seal(h), Door: kms.DoorAWS})
			resp.Plaintext.Destroy()
			return err
		}
	}
	name := func(prefix string) way {
		return func(w *world, token string, ref kms.MasterKeyRef) error {
			id := strings.ReplaceAll(prefix, "team-a", ref.Namespace) + ref.KeyID
			resp, err := w.GenerateDataKey(t.Context(), token, kms.GenerateDataKeyRequest{KeyID: id, NumberOfBytes: 32, Door: kms.DoorAWS})
			resp.Plaintext.Destroy()
			return err
		}
	}
	return map[string]way{
		"by an unscoped blob": blob(envelope.Header{Kind: envelope.KindAWS}),
		scopedBlob: blob(envelope.Header{
			Kind: envelope.KindDataKey, Scope: envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 1},
		}),
		"by its ID":  name(""),
		"by its ARN": name(install + "team-a:key/"),
	}
}

// told is all that a caller is told by an error, without what it has written itself and its name.
func told(err error, token string, ref kms.MasterKeyRef) string {
	e, ok := errors.AsType[*kms.Error](err)
	if !ok {
		return "nothing"
	}
	return e.Code.String() + ", " + kms.ReasonOf(err) + ": " +
		strings.NewReplacer(ref.Namespace+":key/"+ref.KeyID, "…", ref.KeyID, "…", ":"+token+" ", ":… ").Replace(e.Message)
}

// useUp has a pod ask for more keys that do not exist than it is answered for.
func useUp(t *testing.T, w *world, token string) {
	t.Helper()
	for range 200 {
		_, _ = w.GenerateDataKey(t.Context(), token, kms.GenerateDataKeyRequest{
			KeyID: envelope.NewKeyID().String(), NumberOfBytes: 32, Door: kms.DoorAWS,
		})
	}
}

// states are what a key may be to a replica that has just started. Each returns which key to ask for.
var states = map[string]func(t *testing.T, w *world, ref kms.MasterKeyRef) kms.MasterKeyRef{
	"that is loaded": func(t *testing.T, w *world, ref kms.MasterKeyRef) kms.MasterKeyRef {
		t.Helper()
		if _, err := w.MasterKey(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
		return ref
	},
	"that is not loaded": func(_ *testing.T, _ *world, ref kms.MasterKeyRef) kms.MasterKeyRef { return ref },
	doesNotExist: func(_ *testing.T, _ *world, ref kms.MasterKeyRef) kms.MasterKeyRef {
		ref.KeyID = goneID
		return ref
	},
}

const doesNotExist = "that does not exist"

// Who may not use a key is told the same of one that is loaded, of one that is not, and of one that does not exist, whoever has
// asked for what before. Who may use it is not refused because of that, but where its own pod has to wait.
func TestWhatACallerIsToldOfAKeyByItsID(t *testing.T) {
	w := crowded(t)
	ways := ways(t, w)
	for who, c := range map[string]struct {
		own, other                   string // who asks for a key of the own namespace, and of another one
		wantOwn, wantOther, wantNone kms.Code
		only                         string // the way that the permission is for; any other is as without permission
	}{
		"a caller without permission":                           {own: nobody, other: nobody, wantOwn: kms.CodeDenied, wantOther: kms.CodeDenied, wantNone: kms.CodeDenied},
		"a caller with permission on all keys of its namespace": {own: allKeys, other: allKeys, wantOther: kms.CodeNotFound, wantNone: kms.CodeNotFound},
		"a caller with permission on that key":                  {own: keyUser, other: guest, wantNone: kms.CodeDenied},
		"a caller with permission on the DataKeyRequest":        {own: app, other: app, wantOther: kms.CodeNotFound, wantNone: kms.CodeNotFound, only: scopedBlob},
	} {
		for before, happens := range map[string]func(w *world, token string){
			"at first": func(*world, string) {},
			"after another pod of its namespace was throttled": func(w *world, _ string) { useUp(t, w, neighbour) },
			"when its own pod is throttled":                    func(w *world, token string) { useUp(t, w, token) },
		} {
			for how, ask := range ways {
				answers := map[string]string{} // of what, by what was told
				for where, ref := range map[string]kms.MasterKeyRef{"a key of the own namespace": ordersKey, "a key of another namespace": theirsKey} {
					token, want := c.own, c.wantOwn
					if ref == theirsKey {
						token, want = c.other, c.wantOther
					}
					for state, put := range states {
						want := want
						switch {
						case before == "when its own pod is throttled":
							want = kms.CodeThrottled
						case c.only != "" && how != c.only:
							want = kms.CodeDenied
						case state == doesNotExist:
							want = c.wantNone
						}
						what := where + " " + state
						w := replica(t, w)
						asked := put(t, w, ref)
						happens(w, token)
						err := ask(w, token, asked)
						if kms.CodeOf(err) != want {
							t.Errorf("%s, %s, asks %s for %s: got %v, want code %v", who, before, how, what, err, want)
						}
						if err != nil {
							answers[told(err, token, asked)] = what
						}
					}
				}
				if len(answers) > 1 {
					t.Errorf("%s, %s, asks %s and can tell keys apart: %q", who, before, how, answers)
				}
			}
		}
	}
}

// What may be an alias without its prefix is told how one is written, be it there or not.
func TestADenialSaysHowAnAliasIsWritten(t *testing.T) {
	const hint = " (an alias is written alias/NAME)"
	w := settled(t)
	w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.Aliases = []string{"invoices-prod"} })
	for named, want := range map[string]string{
		"orders": hint, "none": hint, "invoices-prod": hint, // a MasterKey, nothing, an alias
		"alias/invoices-prod": "", "alias/none": "", "no.alias": "", ordersKey.KeyID: "", goneID: "",
	} {
		_, err := w.GenerateDataKey(t.Context(), nobody, kms.GenerateDataKeyRequest{KeyID: named, NumberOfBytes: 32, Door: kms.DoorAWS})
		e, ok := errors.AsType[*kms.Error](err)
		want := "system:serviceaccount:team-a:nobody needs the verb generatedatakey on the MasterKey that key_id \"" + named +
			"\" names, if there is one" + want
		if !ok || e.Code != kms.CodeDenied || e.Message != want {
			t.Errorf("got %v, want Denied, %s", err, want)
		}
	}
}

// How long a pod is answered depends on how often it asks for what it may not have, and not on what that is.
func TestWhatThrottlesAPodTellsNothingOfAKey(t *testing.T) {
	w := crowded(t)
	for how, ask := range ways(t, w) {
		for where, ref := range map[string]kms.MasterKeyRef{"a key of the own namespace": ordersKey, "a key of another namespace": theirsKey} {
			for state, put := range states {
				w := replica(t, w)
				w.Clock.SetTime(begin)
				asked := put(t, w, ref)
				for i, want := range []int{150, 5, 10} { // each pause gives back 5 a second
					w.Clock.SetTime(begin.Add([]time.Duration{0, time.Second, 3 * time.Second}[i]))
					answered := 0
					for answered < 1000 && kms.CodeOf(ask(w, nobody, asked)) == kms.CodeDenied {
						answered++
					}
					if answered != want {
						t.Errorf("asked %s for %s %s, %d answers came before it was throttled, want %d", how, where, state, answered, want)
					}
				}
			}
		}
	}
}

// A look-up that fails is no denial to anybody: the name of a key that is not loaded is not known, so neither is who may use it.
func TestALookUpThatFailsIsRefusedToNobodyForGood(t *testing.T) {
	w := crowded(t)
	for how, ask := range ways(t, w) {
		for who, c := range map[string]struct {
			token string
			key   kms.MasterKeyRef
			only  string
		}{
			"with permission on all keys":           {token: allKeys, key: ordersKey},
			"with permission on that key":           {token: keyUser, key: ordersKey},
			"with permission on that key elsewhere": {token: guest, key: theirsKey},
			"with permission on the DataKeyRequest": {token: app, key: ordersKey, only: scopedBlob},
		} {
			if c.only != "" && how != c.only {
				continue
			}
			w := replica(t, w)
			useUp(t, w, neighbour)
			w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { return sealtest.Fail }
			for range 200 { // more than it may have refused
				if err := ask(w, c.token, c.key); kms.CodeOf(err) != kms.CodeUnavailable {
					t.Fatalf("%s, %s: got %v, want Unavailable", who, how, err)
				}
			}
			w.Store.Hook = nil
			if err := ask(w, c.token, c.key); err != nil {
				t.Errorf("%s, %s, when the store is back: %v", who, how, err)
			}
		}
	}
}
