package kms_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
)

func TestDecrypt(t *testing.T) {
	pairs := orders().EncryptionContext
	const deniedScoped = "needs the verb decrypt on datakeyrequests/orders in namespace team-a, or on its MasterKey"
	deniedUnscoped := func(keyID string) string {
		return "needs the verb decrypt on the MasterKey of the blob, which has the key ID " + keyID + ", if there is one"
	}
	const notFound = "ciphertext_blob: the key or key version that made it is not known here"
	const doesNotOpen = "ciphertext_blob: does not open with this encryption_context or aad, or is damaged"
	type change func(*world)

	for name, c := range map[string]struct {
		token   string
		blob    string
		context map[string]string
		keyID   string
		change  change
		want    kms.Code // 0: it opens
		says    string
		event   string // of the denial: the request's name, or "-" for one without
	}{
		// Who may.
		"permission on the request opens its data key":            {token: app, blob: "scoped", context: pairs},
		"permission on the master key opens its data keys":        {token: keyUser, blob: "scoped", context: pairs},
		"permission on the master key opens unscoped blobs":       {token: keyUser, blob: "unscoped"},
		"permission on all master keys opens their data keys":     {token: allKeys, blob: "scoped", context: pairs},
		"a permission in the key's namespace counts for unscoped": {token: stranger, blob: "unscoped"},

		// Who may not.
		"without permission":                                          {token: nobody, blob: "scoped", context: pairs, want: kms.CodeDenied, says: deniedScoped, event: "orders"},
		"permission on another request":                               {token: app, blob: "payments", want: kms.CodeDenied, says: "datakeyrequests/payments", event: "payments"},
		"permission on a request, an unscoped blob":                   {token: app, blob: "unscoped", want: kms.CodeDenied, says: deniedUnscoped(ordersKey.KeyID), event: "-"},
		"another namespace with every permission":                     {token: stranger, blob: "scoped", context: pairs, want: kms.CodeDenied, says: "belongs to namespace team-a: a pod of namespace team-b cannot open it", event: "-"},
		"a scope elsewhere, with the key's permission":                {token: keyUser, blob: "scoped to team-b", want: kms.CodeDenied, says: "belongs to namespace team-b", event: "-"},
		"permission on the request, another namespace's key":          {token: app, blob: "scoped, of team-b's key", want: kms.CodeNotFound, says: notFound},
		"permission on the key's namespace only, the request's scope": {token: keyUser, blob: "scoped, of team-b's key", want: kms.CodeDenied, says: deniedScoped, event: "orders"},
		"a permission that was taken back": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.RBAC.Revoke("system:serviceaccount:team-a:app") },
			want:   kms.CodeDenied, says: deniedScoped, event: "orders",
		},

		// Who is not known.
		"no token":      {token: "", blob: "scoped", want: kms.CodeUnauthenticated},
		"another token": {token: "stolen", blob: "scoped", want: kms.CodeUnauthenticated},
		"a token of no pod": {
			token: "no-pod", blob: "scoped", context: pairs,
			change: func(w *world) {
				c := kmstest.Caller("team-a", app, "")
				c.PodUID = ""
				w.Tokens.Add("no-pod", c)
			},
			want: kms.CodeUnauthenticated, says: "the token is bound to no pod",
		},
		"a token of a pod without UID": {
			token: "no-uid", blob: "scoped", context: pairs,
			change: func(w *world) {
				c := kmstest.Caller("team-a", app, "app-pod")
				c.PodUID = ""
				w.Tokens.Add("no-uid", c)
			},
			want: kms.CodeUnauthenticated, says: "the token is bound to no pod",
		},

		// What is asked for.
		"another context":                      {token: app, blob: "scoped", context: map[string]string{"tenant": "b"}, want: kms.CodeInvalidArgument, says: doesNotOpen},
		"no context":                           {token: app, blob: "scoped", want: kms.CodeInvalidArgument, says: doesNotOpen},
		"one pair too many":                    {token: app, blob: "scoped", context: map[string]string{"tenant": "a", "x": "y"}, want: kms.CodeInvalidArgument, says: doesNotOpen},
		"a context too large":                  {token: app, blob: "scoped", context: map[string]string{"k": strings.Repeat("v", 8192)}, want: kms.CodeInvalidArgument, says: "encryption_context: "},
		"made-up material":                     {token: app, blob: "of made-up keys", want: kms.CodeInvalidArgument, says: doesNotOpen},
		"an unknown key, may use all":          {token: allKeys, blob: "of no key", want: kms.CodeNotFound, says: notFound},
		"an unknown key, may use one":          {token: keyUser, blob: "of no key", want: kms.CodeDenied, says: deniedUnscoped(goneID), event: "-"},
		"an unknown key, may open the request": {token: app, blob: "scoped, of no key", want: kms.CodeNotFound, says: notFound},
		"an unknown key, may nothing":          {token: nobody, blob: "scoped, of no key", want: kms.CodeDenied, says: deniedScoped, event: "orders"},
		"another namespace's key, may use all": {token: allKeys, blob: "of team-b's key", want: kms.CodeNotFound, says: notFound},
		"an unknown version":                   {token: keyUser, blob: "of no version", want: kms.CodeNotFound, says: notFound},
		"a version's other material":           {token: keyUser, blob: "of no material", want: kms.CodeNotFound, says: notFound},
		"a blob of another door":               {token: keyUser, blob: "Alibaba", want: kms.CodeInvalidArgument, says: "kind AlibabaInitial does not open through the door AWS"},
		"a sealed master key":                  {token: keyUser, blob: "a sealed version", want: kms.CodeInvalidArgument, says: "kind MasterKeyVersion is opened for nobody"},
		"a sealing key":                        {token: keyUser, blob: "a sealing key", want: kms.CodeInvalidArgument, says: "kind SealingKey is opened for nobody"},
		"a blob without its first byte":        {token: app, blob: "without its start", want: kms.CodeInvalidArgument, says: "ciphertext_blob: is no blob of this key service"},
		"no blob":                              {token: app, blob: "nothing", want: kms.CodeInvalidArgument, says: "ciphertext_blob: must be 1 to 6144 bytes"},
		"a blob too large":                     {token: app, blob: "too large", want: kms.CodeInvalidArgument, says: "ciphertext_blob: must be 1 to 6144 bytes"},

		// The key that the caller expects.
		"its key ID":                     {token: app, blob: "scoped", context: pairs, keyID: ordersKey.KeyID},
		"its name":                       {token: app, blob: "scoped", context: pairs, keyID: "orders"},
		"its ARN":                        {token: app, blob: "scoped", context: pairs, keyID: "arn of team-a"},
		"another key ID":                 {token: app, blob: "scoped", context: pairs, keyID: otherKey.KeyID, want: kms.CodeInvalidArgument, says: "key_id: the blob is of another key"},
		"another name":                   {token: app, blob: "scoped", context: pairs, keyID: "other", want: kms.CodeInvalidArgument, says: "key_id: the blob is of another key"},
		"its name, in another namespace": {token: stranger, blob: "unscoped", keyID: "orders", want: kms.CodeInvalidArgument, says: "key_id: the blob is of another key"},
		"an ARN of another namespace":    {token: app, blob: "scoped", context: pairs, keyID: "arn of team-b", want: kms.CodeInvalidArgument, says: "key_id: the blob is of another key"},
		"an ARN of another installation": {token: app, blob: "scoped", context: pairs, keyID: "arn:datakeys:kms:0123456789ab:team-a:key/" + ordersKey.KeyID, want: kms.CodeInvalidArgument, says: "key_id: the blob is of another key"},
		"an ARN that is none":            {token: app, blob: "scoped", context: pairs, keyID: "arn:aws:kms:eu-west-1:111122223333:key/" + ordersKey.KeyID, want: kms.CodeInvalidArgument, says: "key_id: an ARN must have the form"},
		"a name that no object has":      {token: app, blob: "scoped", context: pairs, keyID: "Orders!", want: kms.CodeInvalidArgument, says: "key_id: must be a key ID"},
		"a name that is too long":        {token: app, blob: "scoped", context: pairs, keyID: strings.Repeat("a", 2049), want: kms.CodeInvalidArgument, says: "key_id: must be at most 2048 bytes"},

		// The state of the world.
		"the MasterKey is deleted": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.MasterKeys.Delete("team-a", "orders") },
			want:   kms.CodeNotFound, says: "MasterKey team-a/orders does not exist any more: apply it again with its annotation datakeys.io/key-id",
		},
		"the MasterKey was made anew": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.MasterKeys.Put(kms.MasterKey{KeyID: goneID, Namespace: "team-a", Name: "orders"}) },
			want:   kms.CodeNotFound, says: "MasterKey team-a/orders is another key now",
		},
		"the MasterKeys cannot be read": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.MasterKeys.Err = errors.New("no connection") },
			want:   kms.CodeUnavailable,
		},
		"tokens cannot be reviewed": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.Tokens.Err = errors.New("no connection") },
			want:   kms.CodeUnavailable, says: "the token could not be reviewed",
		},
		"permissions cannot be reviewed": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.RBAC.Err = errors.New("no connection") },
			want:   kms.CodeUnavailable, says: "the permission could not be reviewed",
		},
		"the audit log is full": {
			token: app, blob: "scoped", context: pairs,
			change: func(w *world) { w.Audit.Err = errors.New("disk full") },
			want:   kms.CodeUnavailable, says: "the audit record could not be written",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			blob, ok := w.Blobs(t)[c.blob]
			if !ok {
				t.Fatalf("there is no blob %q", c.blob)
			}
			info, err := w.MasterKey(t.Context(), ordersKey)
			if err != nil {
				t.Fatal(err)
			}
			if of, ok := strings.CutPrefix(c.keyID, "arn of "); ok {
				c.keyID = strings.Replace(info.ARN, "team-a", of, 1)
			}
			if c.change != nil {
				c.change(w)
			}
			before := len(w.Audit.Records())
			got, err := w.Decrypt(t.Context(), c.token, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: c.context, KeyID: c.keyID, Door: kms.DoorAWS})
			if kms.CodeOf(err) != c.want {
				t.Fatalf("got %v, want code %v", err, c.want)
			}

			var events []kmstest.Denial
			if c.want == 0 {
				if len(raw(got.Plaintext)) != 32 || got.KeyARN != info.ARN || got.KeyVersion != 1 {
					t.Errorf("got %d bytes of %s, version %d", got.Plaintext.Len(), got.KeyARN, got.KeyVersion)
				}
			} else {
				if !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want one that says %q", err, c.says)
				}
				if !got.Plaintext.IsZero() || got.KeyARN != "" {
					t.Error("something came beside the error")
				}
				if c.event != "" {
					failure, _ := errors.AsType[*kms.Error](err)
					events = []kmstest.Denial{{
						Pod:            kms.Pod{Namespace: namespaceOf(c.token), Name: c.token + "-pod", UID: "uid-of-" + c.token + "-pod"},
						DataKeyRequest: strings.TrimPrefix(c.event, "-"),
						Message:        failure.Message,
					}}
				}
			}
			if diff := cmp.Diff(events, w.Events.Denials()); diff != "" {
				t.Errorf("events: %s", diff)
			}

			// Every call of a known caller with a request that is well-formed leaves one record.
			records := w.Audit.Records()[before:]
			wellFormed := !strings.Contains(c.says, "key_id: must") && !strings.Contains(c.says, "key_id: an ARN") &&
				!strings.Contains(c.says, "is opened for nobody") && !strings.Contains(c.says, "is no blob") &&
				!strings.Contains(c.says, "1 to 6144") && !strings.Contains(c.says, "encryption_context: ")
			known := c.want != kms.CodeUnauthenticated && w.Tokens.Err == nil && w.Audit.Err == nil
			if !wellFormed || !known {
				if len(records) > 0 {
					t.Errorf("got audit records %v, want none", records)
				}
				return
			}
			if len(records) != 1 {
				t.Fatalf("got %d audit records, want 1", len(records))
			}
			r := records[0]
			if c.want == 0 && (r.Decision != kms.DecisionAllowed || r.Bytes != 32 || r.Code != "" || r.Key.ID != ordersKey.KeyID || r.Key.Name != "orders") ||
				c.want != 0 && (r.Decision != kms.DecisionRefused || r.Bytes != 0 || r.Code != c.want.String()) {
				t.Errorf("audit: got %+v", r)
			}
			if r.Time != begin || r.Operation != kms.OperationDecrypt || r.Caller == nil || r.Caller.Pod != c.token+"-pod" ||
				r.Caller.PodUID == "" || r.Caller.Node != "node-1" || r.Caller.ServiceAccount != c.token {
				t.Errorf("audit: got %+v by %+v", r, r.Caller)
			}
		})
	}
}

func namespaceOf(token string) string {
	if token == stranger {
		return "team-b"
	}
	return "team-a"
}

// Whoever has no permission gets one answer, be there a key or not.
func TestADenialDoesNotTellWhetherThereIsAKey(t *testing.T) {
	w := settled(t)
	b := w.Blobs(t)
	same := func(about string, calls ...func(*world) error) {
		t.Helper()
		var first string
		for i, call := range calls {
			for _, w := range []*world{w, replica(t, w)} { // the key known already, and not
				err := call(w)
				e, ok := errors.AsType[*kms.Error](err)
				if !ok || e.Code != kms.CodeDenied && e.Code != kms.CodeNotFound {
					t.Fatalf("%s, call %d: got %v", about, i, err)
				}
				got := e.Code.String() + e.Message
				for _, ref := range []string{ordersKey.KeyID, theirsKey.KeyID, goneID, "arn:"} { // what the caller wrote is no hint
					got = strings.ReplaceAll(got, ref, "…")
				}
				if first == "" {
					first = got
				}
				if got != first {
					t.Errorf("%s: one answer is %q, another %q", about, first, got)
				}
			}
		}
	}
	decrypt := func(token, blob string) func(*world) error {
		return func(w *world) error {
			_, err := w.Decrypt(t.Context(), token, kms.DecryptRequest{CiphertextBlob: b[blob], Door: kms.DoorAWS})
			return err
		}
	}
	generate := func(token, id string) func(*world) error {
		return func(w *world) error {
			_, err := w.GenerateDataKey(t.Context(), token, kms.GenerateDataKeyRequest{KeyID: id, NumberOfBytes: 32, Door: kms.DoorAWS})
			return err
		}
	}
	same("unscoped blobs, no permission", decrypt(nobody, "unscoped"), decrypt(nobody, "of no key"), decrypt(nobody, "of team-b's key"), decrypt(nobody, "of no version"))
	same("scoped blobs, no permission", decrypt(nobody, "scoped"), decrypt(nobody, "scoped, of no key"), decrypt(nobody, "scoped, of team-b's key"))
	same("scoped blobs, permission on the request", decrypt(app, "scoped, of no key"), decrypt(app, "scoped, of team-b's key"))
	same("unscoped blobs, permission on all keys here", decrypt(allKeys, "of no key"), decrypt(allKeys, "of team-b's key"))
	same("key IDs, no permission", generate(nobody, ordersKey.KeyID), generate(nobody, goneID), generate(nobody, theirsKey.KeyID))
	same("key IDs, permission on all keys here", generate(allKeys, goneID), generate(allKeys, theirsKey.KeyID))

	w.Store.Edit(theirsKey.KeyID, func(s *seal.Secret) { s.Data["v1"][70] ^= 1 })
	w = replica(t, w)
	same("a key whose material is broken", decrypt(nobody, "of no key"), decrypt(nobody, "of team-b's key"))
}

func TestWhoHangsUpDoesNotGetAroundTheRecord(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	before := len(w.Audit.Records())
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	req := kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	if _, err := w.Decrypt(gone, nobody, req); kms.CodeOf(err) != kms.CodeDenied {
		t.Errorf("got %v, want Denied", err)
	}
	if got := len(w.Audit.Records()) - before; got != 1 {
		t.Errorf("got %d records of the denial, want 1", got)
	}
	// What cannot be recorded in time is not released.
	if _, err := w.Decrypt(gone, app, req); kms.CodeOf(err) != kms.CodeUnavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
}

func TestGenerateDataKey(t *testing.T) {
	const denied = "needs the verb generatedatakey on the MasterKey that key_id"
	materialGone := func(w *world) { // and the key is known, and has an alias
		o := object(ordersKey)
		o.Aliases = []string{"orders-prod"}
		w.MasterKeys.Put(o)
		w.Store.Delete(ordersKey.KeyID)
		w.Clock.SetTime(begin.Add(11e9))
	}
	for name, c := range map[string]struct {
		token  string
		req    kms.GenerateDataKeyRequest
		change func(*world)
		want   kms.Code
		says   string
	}{
		"by name":                                      {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32}},
		"by key ID":                                    {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: ordersKey.KeyID, NumberOfBytes: 16}},
		"by ARN":                                       {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "arn of team-a", NumberOfBytes: 1024}},
		"with a context":                               {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 1, EncryptionContext: map[string]string{"a": "b"}}},
		"permission on all":                            {token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: "other", NumberOfBytes: 32}},
		"permission in another namespace":              {token: stranger, req: kms.GenerateDataKeyRequest{KeyID: ordersKey.KeyID, NumberOfBytes: 32}},
		"a name is of the caller's namespace":          {token: stranger, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32}, want: kms.CodeDenied, says: denied},
		"without permission":                           {token: nobody, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32}, want: kms.CodeDenied, says: denied},
		"decrypt is not generatedatakey":               {token: app, req: kms.GenerateDataKeyRequest{KeyID: ordersKey.KeyID, NumberOfBytes: 32}, want: kms.CodeDenied, says: denied},
		"permission on another key":                    {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "other", NumberOfBytes: 32}, want: kms.CodeDenied, says: denied},
		"a name that is not there, without permission": {token: nobody, req: kms.GenerateDataKeyRequest{KeyID: "none", NumberOfBytes: 32}, want: kms.CodeDenied, says: denied},
		"a name that is not there":                     {token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: "none", NumberOfBytes: 32}, want: kms.CodeNotFound, says: `there is no key "none"`},
		"a key ID that is not there":                   {token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: goneID, NumberOfBytes: 32}, want: kms.CodeNotFound, says: "there is no key"},
		"an ARN with another namespace":                {token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: "arn of team-b", NumberOfBytes: 32}, want: kms.CodeNotFound, says: "there is no key"},
		"no key":                                       {token: keyUser, req: kms.GenerateDataKeyRequest{NumberOfBytes: 32}, want: kms.CodeInvalidArgument, says: "key_id: must name a key"},
		"no bytes":                                     {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders"}, want: kms.CodeInvalidArgument, says: "number_of_bytes: exactly one of number_of_bytes and key_spec must be set"},
		"too many bytes":                               {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 1025}, want: kms.CodeInvalidArgument, says: "number_of_bytes: must be 1 to 1024"},
		"a context too large":                          {token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, EncryptionContext: map[string]string{"k": strings.Repeat("v", 8192)}}, want: kms.CodeInvalidArgument, says: "encryption_context: "},
		"no token":                                     {token: "", req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32}, want: kms.CodeUnauthenticated},
		"the MasterKey is deleted": {
			token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: ordersKey.KeyID, NumberOfBytes: 32},
			change: func(w *world) { w.MasterKeys.Delete("team-a", "orders") },
			want:   kms.CodeNotFound, says: "does not exist any more",
		},
		"the MasterKey has no material yet": {
			token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: "fresh", NumberOfBytes: 32},
			change: func(w *world) { w.MasterKeys.Put(kms.MasterKey{KeyID: goneID, Namespace: "team-a", Name: "fresh"}) },
			want:   kms.CodeFailedPrecondition, says: "see the conditions",
		},
		"the MasterKey names another's key ID": {
			token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: "thief", NumberOfBytes: 32},
			change: func(w *world) {
				w.MasterKeys.Put(kms.MasterKey{KeyID: theirsKey.KeyID, Namespace: "team-a", Name: "thief"})
			},
			want: kms.CodeFailedPrecondition, says: "see the conditions",
		},
		"the MasterKey's key ID is none": {
			token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: "odd", NumberOfBytes: 32},
			change: func(w *world) { w.MasterKeys.Put(kms.MasterKey{KeyID: "odd", Namespace: "team-a", Name: "odd"}) },
			want:   kms.CodeFailedPrecondition, says: "has no valid key ID",
		},
		"the material is gone for a while": {
			token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32},
			change: materialGone, want: kms.CodeFailedPrecondition, says: "see the conditions",
		},
		"the material is gone for a while, by key ID": {
			token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: ordersKey.KeyID, NumberOfBytes: 32},
			change: materialGone, want: kms.CodeFailedPrecondition, says: "see the conditions",
		},
		"the material is gone for a while, by ARN": {
			token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "arn of team-a", NumberOfBytes: 32},
			change: materialGone, want: kms.CodeFailedPrecondition, says: "see the conditions",
		},
		"the material is gone for a while, by alias": {
			token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "alias/orders-prod", NumberOfBytes: 32},
			change: materialGone, want: kms.CodeFailedPrecondition, says: "see the conditions",
		},
		"the material is gone for a while, without permission": {
			token: nobody, req: kms.GenerateDataKeyRequest{KeyID: ordersKey.KeyID, NumberOfBytes: 32},
			change: materialGone, want: kms.CodeDenied, says: denied,
		},
		"another namespace's material is gone for a while": {
			token: allKeys, req: kms.GenerateDataKeyRequest{KeyID: theirsKey.KeyID, NumberOfBytes: 32},
			change: func(w *world) { w.Store.Delete(theirsKey.KeyID); w.Clock.SetTime(begin.Add(11e9)) },
			want:   kms.CodeNotFound, says: "there is no key",
		},
		"the audit log is full": {
			token: keyUser, req: kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32},
			change: func(w *world) { w.Audit.Err = errors.New("disk full") },
			want:   kms.CodeUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			info, err := w.MasterKey(t.Context(), ordersKey)
			if err != nil {
				t.Fatal(err)
			}
			if of, ok := strings.CutPrefix(c.req.KeyID, "arn of "); ok {
				c.req.KeyID = strings.Replace(info.ARN, "team-a", of, 1)
			}
			if c.change != nil {
				c.change(w)
			}
			c.req.Door = kms.DoorAWS
			got, err := w.GenerateDataKey(t.Context(), c.token, c.req)
			if kms.CodeOf(err) != c.want {
				t.Fatalf("got %v, want code %v", err, c.want)
			}
			if c.want != 0 {
				if !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want one that says %q", err, c.says)
				}
				if !got.Plaintext.IsZero() || got.CiphertextBlob != nil {
					t.Error("something came beside the error")
				}
				return
			}
			b, err := envelope.Parse(got.CiphertextBlob)
			if err != nil {
				t.Fatal(err)
			}
			if b.Header.Kind != envelope.KindAWS || got.Plaintext.Len() != c.req.NumberOfBytes || got.KeyVersion != 1 {
				t.Errorf("got %v, %d bytes, version %d", b.Header, got.Plaintext.Len(), got.KeyVersion)
			}
			if c.token == keyUser {
				back, err := w.Decrypt(t.Context(), c.token, kms.DecryptRequest{
					CiphertextBlob: got.CiphertextBlob, EncryptionContext: c.req.EncryptionContext, KeyID: got.KeyARN, Door: kms.DoorAWS,
				})
				if err != nil {
					t.Fatal(err)
				}
				if !back.Plaintext.Equal(got.Plaintext) || back.KeyARN != got.KeyARN {
					t.Error("the blob opens to something else")
				}
			}
		})
	}
}

func TestABatchAnswersEachRequestByItself(t *testing.T) {
	w := settled(t)
	b := w.Blobs(t)
	pairs := orders().EncryptionContext
	item := func(blob string, context map[string]string) kms.DecryptRequest {
		return kms.DecryptRequest{CiphertextBlob: b[blob], EncryptionContext: context}
	}
	reqs := []kms.DecryptRequest{
		item("scoped", pairs), item("payments", nil), item("nothing", nil), item("scoped", nil),
		item("unscoped", nil), item("scoped, of no key", nil), item("scoped", pairs),
	}
	want := []kms.Code{
		0, kms.CodeDenied, kms.CodeInvalidArgument, kms.CodeInvalidArgument,
		kms.CodeDenied, kms.CodeNotFound, 0,
	}
	reviews, records := w.Tokens.Calls(), len(w.Audit.Records())
	results, err := w.BatchDecrypt(t.Context(), app, reqs)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]kms.Code, len(results))
	for i, r := range results {
		got[i] = kms.CodeOf(r.Err)
		if (r.Response.Plaintext.Len() == 32) != (r.Err == nil) {
			t.Errorf("result %d: %d bytes and %v", i, r.Response.Plaintext.Len(), r.Err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results: %s", diff)
	}
	if !results[0].Response.Plaintext.Equal(results[6].Response.Plaintext) {
		t.Error("one blob opened to two data keys")
	}
	if got := w.Tokens.Calls() - reviews; got != 1 {
		t.Errorf("the token was reviewed %d times, want once", got)
	}
	if got := len(w.Audit.Records()) - records; got != 6 {
		t.Errorf("got %d audit records, want one for each of 6 well-formed requests", got)
	}
	asked := map[kms.Access]int{}
	for _, a := range w.RBAC.Asked() {
		asked[a]++
	}
	wantAsked := map[kms.Access]int{
		{Verb: "decrypt", Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a", Name: "orders"}:        1,
		{Verb: "decrypt", Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a"}:                        1,
		{Verb: "decrypt", Resource: v1alpha1.ResourceDataKeyRequests, Namespace: "team-a", Name: "orders"}:   1,
		{Verb: "decrypt", Resource: v1alpha1.ResourceDataKeyRequests, Namespace: "team-a", Name: "payments"}: 1,
	}
	if !maps.Equal(asked, wantAsked) {
		t.Errorf("RBAC was asked %v, want %v", asked, wantAsked)
	}
}

func TestABatchOfTheWrongSizeOrWithoutCallerIsRefusedWhole(t *testing.T) {
	w := settled(t)
	good := kms.DecryptRequest{CiphertextBlob: w.Sealed(t, orders()), EncryptionContext: orders().EncryptionContext}
	many := func(n int) []kms.DecryptRequest {
		reqs := make([]kms.DecryptRequest, n)
		for i := range reqs {
			reqs[i] = good
		}
		return reqs
	}
	for name, c := range map[string]struct {
		token string
		reqs  []kms.DecryptRequest
		want  kms.Code
	}{
		"none":            {app, nil, kms.CodeInvalidArgument},
		"one":             {app, many(1), 0},
		"a hundred":       {app, many(100), 0},
		"a hundred and 1": {app, many(101), kms.CodeInvalidArgument},
		"no token":        {"", many(1), kms.CodeUnauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			results, err := w.BatchDecrypt(t.Context(), c.token, c.reqs)
			if kms.CodeOf(err) != c.want {
				t.Fatalf("got %v, want code %v", err, c.want)
			}
			if err == nil && len(results) != len(c.reqs) || err != nil && results != nil {
				t.Errorf("got %d results and %v", len(results), err)
			}
			for i, r := range results {
				if r.Err != nil {
					t.Errorf("result %d: %v", i, r.Err)
				}
			}
		})
	}
}
