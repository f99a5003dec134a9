package kms_test

import (
	"strings"
	"testing"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
)

// rule is one that a request breaks: what the caller is told, and what mends it.
type rule struct {
	reason, says string
	mend         func()
}

// Each operation gets a request that breaks every rule. Told is the first; once it is mended, the next.
func TestTheOrderOfChecks(t *testing.T) {
	const both = "must be empty where "
	pairs, aad := map[string]string{"k": "v"}, []byte("aad")
	p, err := envelope.PlaintextFromBytes([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	type request struct {
		w     *world
		token string
	}
	// What every operation that encrypts checks about its key, in order, with the fields that name it.
	target := func(r *request, field string, key *string) []rule {
		return []rule{
			{kmsv1.ReasonDenied, field, func() { r.token = allKeys }},
			{kmsv1.ReasonKeyNotFound, field, func() { *key = "orders" }},
		}
	}
	states := func(r *request) []rule {
		return []rule{
			{kmsv1.ReasonKeyDisabled, "is Disabled", func() { r.w.MasterKeys.Put(inState(ordersKey, kms.KeyStatePendingDeletion)) }},
			{kmsv1.ReasonKeyPendingDeletion, "is PendingDeletion: set its spec.state to Enabled to use it again", func() {
				r.w.MasterKeys.Put(inState(ordersKey, "Strange"))
			}},
			{kmsv1.ReasonKeyUnavailable, `in the unknown state "Strange"`, func() { r.w.MasterKeys.Put(inState(ordersKey, kms.KeyStateEnabled)) }},
		}
	}
	join := func(lists ...[]rule) (all []rule) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}

	for name, operation := range map[string]func(r *request) (call func() error, rules []rule){
		"GenerateDataKey": func(r *request) (func() error, []rule) {
			q := &kms.GenerateDataKeyRequest{KeyID: "No name!", NumberOfBytes: 1025, KeySpec: "AES_512", EncryptionContext: map[string]string{"k": "\xff"}, AAD: make([]byte, 8193), Door: kms.DoorNative, DryRun: true}
			call := func() error { _, err := r.w.GenerateDataKey(t.Context(), r.token, *q); return err }
			return call, join([]rule{
				{kmsv1.ReasonInvalidKeyName, "key_id: ", func() { q.KeyID = "none" }},
				{kmsv1.ReasonInvalid, "encryption_context: must be at most 1024 pairs of valid UTF-8, and at most 8192 bytes together", func() { q.EncryptionContext = pairs }},
				{kmsv1.ReasonInvalid, "aad: must be at most 8192 bytes", func() { q.AAD = aad }},
				{kmsv1.ReasonInvalid, "door: must be 1 to 3, not 0", func() { q.Door = 17 }},
				{kmsv1.ReasonInvalid, "door: must be 1 to 3, not 17", func() { q.Door = kms.DoorAWS }},
				{kmsv1.ReasonInvalid, "number_of_bytes: must be 1 to 1024", func() { q.NumberOfBytes = -1 }},
				{kmsv1.ReasonInvalid, "number_of_bytes: must be 1 to 1024", func() { q.NumberOfBytes = 32 }},
				{kmsv1.ReasonInvalid, "key_spec: must be AES_256 or AES_128", func() { q.KeySpec = "AES_256" }},
				{kmsv1.ReasonInvalid, "exactly one of number_of_bytes and key_spec", func() { q.NumberOfBytes = 0 }},
				{kmsv1.ReasonInvalid, both + "aad", func() { q.AAD = nil }},
			}, target(r, "key_id", &q.KeyID), states(r), []rule{{kmsv1.ReasonDryRun, "dry_run", func() { q.DryRun = false }}})
		},
		"GenerateDataKeyPair": func(r *request) (func() error, []rule) {
			q := &kms.GenerateDataKeyPairRequest{KeyID: "", KeyPairSpec: "RSA_1024", KeyFormat: "pem", EncryptionContext: pairs, AAD: aad, Door: kms.DoorNative, WithoutPlaintext: true, DryRun: true}
			call := func() error { _, err := r.w.GenerateDataKeyPair(t.Context(), r.token, *q); return err }
			return call, join([]rule{
				{kmsv1.ReasonInvalid, "key_id: must name a key", func() { q.KeyID = "none" }},
				{kmsv1.ReasonInvalid, "door", func() { q.Door = kms.DoorAlibaba }},
				{kmsv1.ReasonInvalid, "key_pair_spec: must be one of", func() { q.KeyPairSpec = "ECC_NIST_P256" }},
				{kmsv1.ReasonInvalid, "key_format: must be DER or PEM", func() { q.KeyFormat = "PEM" }},
				{kmsv1.ReasonInvalid, both + "aad", func() { q.EncryptionContext = nil }},
			}, target(r, "key_id", &q.KeyID), states(r), []rule{{kmsv1.ReasonDryRun, "dry_run", func() { q.DryRun = false }}})
		},
		"Encrypt": func(r *request) (func() error, []rule) {
			q := &kms.EncryptRequest{KeyID: strings.Repeat("k", 2049), EncryptionContext: pairs, AAD: aad, Door: kms.DoorNative, DryRun: true}
			call := func() error { _, err := r.w.Encrypt(t.Context(), r.token, *q); return err }
			return call, join([]rule{
				{kmsv1.ReasonInvalid, "key_id: must be at most 2048 bytes", func() { q.KeyID = "none" }},
				{kmsv1.ReasonInvalid, "door", func() { q.Door = kms.DoorAlibabaAdvance }},
				{kmsv1.ReasonInvalid, "plaintext: must be 1 to 4096 bytes", func() { q.Plaintext = p }},
				{kmsv1.ReasonInvalid, both + "aad", func() { q.AAD = nil }},
			}, target(r, "key_id", &q.KeyID), states(r), []rule{{kmsv1.ReasonDryRun, "dry_run", func() { q.DryRun = false }}})
		},
		"Decrypt": func(r *request) (func() error, []rule) {
			made, err := r.w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAlibaba})
			if err != nil {
				t.Fatal(err)
			}
			q := &kms.DecryptRequest{CiphertextBlob: make([]byte, 6145), EncryptionContext: pairs, AAD: aad, IV: []byte("short"), KeyID: "no/name", Door: -1, DryRun: true}
			call := func() error { _, err := r.w.Decrypt(t.Context(), r.token, *q); return err }
			return call, join(r.w.blobRules(q, made), []rule{
				{kmsv1.ReasonDenied, "needs the verb decrypt on the MasterKey of the blob", func() { r.token = allKeys }},
				{kmsv1.ReasonIncorrectKey, "key_id: the blob is of another key", func() { q.KeyID = "orders" }},
			}, states(r), []rule{
				{kmsv1.ReasonInvalidCiphertext, "does not open through the door AWS", func() { q.Door = kms.DoorAlibabaAdvance }},
				{kmsv1.ReasonInvalidCiphertext, "iv: is not the one of the blob", func() { q.IV = nil }},
				{kmsv1.ReasonInvalidCiphertext, "iv: must be stated for a blob of kind AlibabaInitial", func() { q.IV = made.IV }},
				{kmsv1.ReasonInvalidCiphertext, "does not open with this encryption_context or aad", func() { q.EncryptionContext = nil }},
				{kmsv1.ReasonDryRun, "dry_run", func() { q.DryRun = false }},
			})
		},
		"ReEncrypt": func(r *request) (func() error, []rule) {
			made, err := r.w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "other", NumberOfBytes: 32, Door: kms.DoorAWS})
			if err != nil {
				t.Fatal(err)
			}
			r.w.MasterKeys.Put(inState(otherKey, kms.KeyStateDisabled))
			q := &kms.ReEncryptRequest{
				CiphertextBlob: []byte("no blob"), SourceEncryptionContext: pairs, SourceAAD: aad, SourceKeyID: "no/name", SourceIV: []byte("short"),
				DestinationKeyID: "", DestinationEncryptionContext: map[string]string{"k": strings.Repeat("v", 8192)}, DestinationAAD: aad, DryRun: true,
			}
			call := func() error { _, err := r.w.ReEncrypt(t.Context(), r.token, *q); return err }
			return call, join([]rule{
				{kmsv1.ReasonInvalidCiphertext, "ciphertext_blob: is no blob of this key service", func() { q.CiphertextBlob = made.CiphertextBlob }},
				{kmsv1.ReasonInvalidKeyName, "source_key_id: ", func() { q.SourceKeyID = "orders" }},
				{kmsv1.ReasonInvalid, "source_iv: must be 12 bytes", func() { q.SourceIV = make([]byte, 12) }},
				{kmsv1.ReasonInvalid, "destination_key_id: must name a key", func() { q.DestinationKeyID = "none" }},
				{kmsv1.ReasonInvalid, "destination_encryption_context: ", func() { q.DestinationEncryptionContext = pairs }},
				{kmsv1.ReasonInvalid, "door: must be 1 to 3", func() { q.Door = kms.DoorAWS }},
				{kmsv1.ReasonInvalid, "source_encryption_context: " + both + "source_aad", func() { q.SourceAAD = nil }},
				{kmsv1.ReasonInvalid, "destination_encryption_context: " + both + "destination_aad", func() { q.DestinationAAD = nil }},
				{kmsv1.ReasonDenied, "needs the verb reencryptfrom on the MasterKey of the blob", func() { r.token = reader }},
				{kmsv1.ReasonIncorrectKey, "source_key_id: the blob is of another key", func() { q.SourceKeyID = "other" }},
				{kmsv1.ReasonDenied, `needs the verb reencryptto on the MasterKey that destination_key_id "none" names`, func() { r.token = allKeys }},
				{kmsv1.ReasonKeyNotFound, "destination_key_id: ", func() { q.DestinationKeyID = "orders" }},
				{kmsv1.ReasonKeyDisabled, "team-a/other is Disabled", func() { r.w.MasterKeys.Put(inState(otherKey, kms.KeyStateEnabled)) }},
			}, states(r), []rule{
				{kmsv1.ReasonInvalidCiphertext, "source_iv: is not the one of the blob", func() { q.SourceIV = nil }},
				{kmsv1.ReasonInvalidCiphertext, "does not open with this source_encryption_context or source_aad", func() { q.SourceEncryptionContext = nil }},
				{kmsv1.ReasonDryRun, "dry_run", func() { q.DryRun = false }},
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &request{w: settled(t)}
			call, rules := operation(r)
			rules = append([]rule{{kmsv1.ReasonUnauthenticated, "carries no token", func() { r.token = nobody }}}, rules...)
			r.w.MasterKeys.Put(inState(ordersKey, kms.KeyStateDisabled))
			wellFormed := false
			for i, rule := range rules {
				wellFormed = wellFormed || rule.reason == kmsv1.ReasonDenied
				before := len(r.w.Audit.Records())
				err := call()
				if kms.ReasonOf(err) != rule.reason || !strings.Contains(err.Error(), rule.says) {
					t.Fatalf("rule %d: got %v (%s), want %s that says %q", i, err, kms.ReasonOf(err), rule.reason, rule.says)
				}
				records := r.w.Audit.Records()[before:]
				if (len(records) == 1) != wellFormed {
					t.Errorf("rule %d: got the audit records %v", i, records)
				}
				if len(records) == 1 && (!records[0].DryRun || records[0].Decision != kms.DecisionRefused || records[0].Bytes != 0 || records[0].Door == "") {
					t.Errorf("rule %d: got the audit record %+v", i, records[0])
				}
				rule.mend()
			}
			if err := call(); err != nil {
				t.Errorf("with every rule kept: %v", err)
			}
			last := r.w.Audit.Records()[len(r.w.Audit.Records())-1]
			if last.DryRun || last.Decision != kms.DecisionAllowed || last.Operation != name && name != "GenerateDataKeyPair" || last.Bytes == 0 {
				t.Errorf("got the audit record %+v", last)
			}
		})
	}
}

// blobRules are those that a blob and what stands beside it keep by themselves.
func (w *world) blobRules(q *kms.DecryptRequest, made kms.GenerateDataKeyResponse) []rule {
	sealed := w.Store.Secrets()[ordersKey.KeyID].Data["v1"]
	return []rule{
		{kmsv1.ReasonInvalid, "ciphertext_blob: must be 1 to 6144 bytes", func() { q.CiphertextBlob = nil }},
		{kmsv1.ReasonInvalid, "ciphertext_blob: must be 1 to 6144 bytes", func() { q.CiphertextBlob = made.CiphertextBlob[1:] }},
		{kmsv1.ReasonInvalidCiphertext, "ciphertext_blob: is no blob of this key service", func() { q.CiphertextBlob = sealed }},
		{kmsv1.ReasonInvalidCiphertext, "a blob of kind MasterKeyVersion is opened for nobody", func() { q.CiphertextBlob = made.CiphertextBlob }},
		{kmsv1.ReasonInvalidKeyName, "key_id: ", func() { q.KeyID = "other" }},
		{kmsv1.ReasonInvalid, "iv: must be 12 bytes", func() { q.IV = make([]byte, 12) }},
		{kmsv1.ReasonInvalid, "door: must be 0 to 3, not -1", func() { q.Door = kms.DoorAWS }},
		{kmsv1.ReasonInvalid, "encryption_context: must be empty where aad is set", func() { q.AAD = nil }},
	}
}

// inState is the object of a master key, in a state.
func inState(ref kms.MasterKeyRef, state kms.KeyState) kms.MasterKey {
	return kms.MasterKey{KeyID: ref.KeyID, Namespace: ref.Namespace, Name: ref.Name, State: state}
}
