package kms_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/kms"
)

// How a kind opens through a door.
const (
	no        = iota
	yes       // with the IV or without
	withTheIV // only if the IV is stated
)

var allDoors = []kms.Door{kms.DoorNative, kms.DoorAWS, kms.DoorAlibaba, kms.DoorAlibabaAdvance}

// opening is the rule of docs/format.md, for each kind and the doors in the order of allDoors.
var opening = map[envelope.Kind][4]int{
	envelope.KindDataKey:          {yes, yes, yes, yes},
	envelope.KindAWS:              {no, yes, no, no},
	envelope.KindAlibabaInitial:   {no, no, withTheIV, withTheIV},
	envelope.KindAlibabaAdvance:   {no, no, no, yes},
	envelope.KindMasterKeyVersion: {no, no, no, no},
	envelope.KindSealingKey:       {no, no, no, no},
}

// Every kind, at every door, with every IV, bound to and opened with every associated data: 6 * 4 * 3 * 3 * 5 cases.
func TestWhichKindOpensThroughWhichDoor(t *testing.T) {
	w := settled(t)
	materialID, material := w.Material(t, ordersKey)
	ivs := map[string]func(iv []byte) []byte{
		"no IV":    func([]byte) []byte { return nil },
		"its IV":   bytes.Clone,
		"other IV": func(iv []byte) []byte { return append([]byte{iv[0] ^ 1}, iv[1:]...) },
	}
	bound := map[string]envelope.AssociatedData{
		"nothing": {},
		"context": {Context: map[string]string{"k": "v"}},
		"aad":     {Raw: []byte("kv")},
	}
	stated := map[string]envelope.AssociatedData{
		"other context": {Context: map[string]string{"k": "w"}},
		"other aad":     {Raw: []byte("kw")},
	}
	maps.Copy(stated, bound)
	for kind, rules := range opening {
		h := envelope.Header{Kind: kind, KeyID: keyID(t, ordersKey.KeyID), KeyVersion: 1, MaterialID: materialID}
		if kind.Scoped() {
			h.Scope = envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 1}
		}
		for boundTo, ad := range bound {
			blob := forgedWith(t, h, material, ad)
			parsed, err := envelope.Parse(blob)
			if err != nil {
				t.Fatal(err)
			}
			for i, door := range allDoors {
				for ivName, iv := range ivs {
					for statedName, statedAD := range stated {
						w.Clock.SetTime(w.Clock.Now().Add(time.Second)) // or the pod had too much refused
						resp, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{
							CiphertextBlob: blob, EncryptionContext: statedAD.Context, AAD: statedAD.Raw, IV: iv(parsed.IV()), Door: door,
						})
						opens := boundTo == statedName && ivName != "other IV" &&
							(rules[i] == yes || rules[i] == withTheIV && ivName == "its IV")
						want := ""
						if !opens {
							want = kmsv1.ReasonInvalidCiphertext
						}
						if got := kms.ReasonOf(err); got != want || (resp.Plaintext.Len() == 32) != opens {
							t.Errorf("%v bound to %s, through %v, with %s and %s: got %v and %d bytes, want %q",
								kind, boundTo, door, ivName, statedName, err, resp.Plaintext.Len(), want)
						}
						// ReEncrypt opens as Decrypt does, but not through the native API.
						re, err := w.ReEncrypt(t.Context(), allKeys, kms.ReEncryptRequest{
							CiphertextBlob: blob, SourceEncryptionContext: statedAD.Context, SourceAAD: statedAD.Raw, SourceIV: iv(parsed.IV()),
							DestinationKeyID: "other", Door: door,
						})
						if door == kms.DoorNative && kind != envelope.KindMasterKeyVersion && kind != envelope.KindSealingKey {
							want = kmsv1.ReasonInvalid
						}
						if got := kms.ReasonOf(err); got != want || (re.CiphertextBlob != nil) != (want == "") {
							t.Errorf("ReEncrypt: %v bound to %s, through %v, with %s and %s: got %v, want %q", kind, boundTo, door, ivName, statedName, err, want)
						}
					}
				}
			}
		}
	}
}

// What a door makes, it opens.
func TestWhatADoorMakes(t *testing.T) {
	type made struct {
		Kind    envelope.Kind
		Version uint32
	}
	for door, want := range map[kms.Door]made{
		kms.DoorAWS:            {envelope.KindAWS, 2},
		kms.DoorAlibaba:        {envelope.KindAlibabaInitial, 1},
		kms.DoorAlibabaAdvance: {envelope.KindAlibabaAdvance, 2},
	} {
		t.Run(door.String(), func(t *testing.T) {
			w := settled(t)
			w.AddVersion(t, ordersKey, 2)
			w = replica(t, w)
			info, err := w.MasterKey(t.Context(), ordersKey)
			if err != nil {
				t.Fatal(err)
			}
			plaintext, err := envelope.PlaintextFromBytes([]byte("a secret of the caller's own"))
			if err != nil {
				t.Fatal(err)
			}
			aad := []byte("aad")
			made, encrypted := map[string]kms.Encrypted{}, map[string]envelope.Plaintext{}
			note := func(name string, e kms.Encrypted, p envelope.Plaintext, err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				made[name], encrypted[name] = e, p
			}
			data, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", KeySpec: "AES_256", AAD: aad, Door: door})
			note("GenerateDataKey", data.Encrypted, data.Plaintext, err)
			sealed, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", KeySpec: "AES_128", AAD: aad, Door: door, WithoutPlaintext: true})
			note("GenerateDataKeyWithoutPlaintext", sealed.Encrypted, sealed.Plaintext, err)
			pair, err := w.GenerateDataKeyPair(t.Context(), allKeys, kms.GenerateDataKeyPairRequest{KeyID: "orders", KeyPairSpec: "ECC_NIST_P256", AAD: aad, Door: door})
			note("GenerateDataKeyPair", pair.Encrypted, pair.PrivateKey, err)
			sealedPair, err := w.GenerateDataKeyPair(t.Context(), allKeys, kms.GenerateDataKeyPairRequest{KeyID: "orders", KeyPairSpec: "ECC_NIST_EDWARDS25519", AAD: aad, Door: door, WithoutPlaintext: true})
			note("GenerateDataKeyPairWithoutPlaintext", sealedPair.Encrypted, sealedPair.PrivateKey, err)
			inPEM, err := w.GenerateDataKeyPair(t.Context(), allKeys, kms.GenerateDataKeyPairRequest{KeyID: "orders", KeyPairSpec: "ECC_NIST_P256", KeyFormat: "PEM", AAD: aad, Door: door})
			note("GenerateDataKeyPair in PEM", inPEM.Encrypted, inPEM.PrivateKey, err)
			for _, text := range [][]byte{inPEM.PublicKey, inPEM.PrivateKey.AppendTo(insecuresecret.Token{}, nil)} {
				if block, rest := pem.Decode(text); block == nil || len(rest) > 0 {
					t.Error("a key in PEM is not in PEM")
				}
			}
			cipher, err := w.Encrypt(t.Context(), allKeys, kms.EncryptRequest{KeyID: "orders", Plaintext: plaintext, AAD: aad, Door: door})
			note("Encrypt", cipher.Encrypted, plaintext, err)
			again, err := w.ReEncrypt(t.Context(), allKeys, kms.ReEncryptRequest{
				CiphertextBlob: cipher.CiphertextBlob, SourceAAD: aad, SourceIV: cipher.IV, DestinationKeyID: "orders", DestinationAAD: aad, Door: door,
			})
			note("ReEncrypt", again.Encrypted, plaintext, err)

			for name, e := range made {
				b, err := envelope.Parse(e.CiphertextBlob)
				if err != nil {
					t.Fatal(err)
				}
				got := envelope.Header{Kind: want.Kind, KeyID: keyID(t, ordersKey.KeyID), KeyVersion: want.Version, MaterialID: e.MaterialID}
				if diff := cmp.Diff(b.Header, got); diff != "" || e.KeyARN != info.ARN || e.KeyVersion != int32(want.Version) || !bytes.Equal(e.IV, b.IV()) {
					t.Errorf("%s made %+v: %s", name, e, diff)
				}
				back, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: e.CiphertextBlob, AAD: aad, IV: e.IV, KeyID: e.KeyARN, Door: door})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if !encrypted[name].IsZero() && !back.Plaintext.Equal(encrypted[name]) || back.MaterialID != e.MaterialID || back.KeyVersion != e.KeyVersion {
					t.Errorf("%s: it opens to something else", name)
				}
			}
			if !sealed.Plaintext.IsZero() || !sealedPair.PrivateKey.IsZero() {
				t.Error("an operation without plaintext returns one")
			}
			if again.SourceKeyARN != info.ARN || again.SourceKeyVersion != int32(want.Version) || again.SourceMaterialID != cipher.MaterialID {
				t.Errorf("ReEncrypt says that the old blob is of %s, version %d", again.SourceKeyARN, again.SourceKeyVersion)
			}
			if bytes.Equal(again.CiphertextBlob, cipher.CiphertextBlob) {
				t.Error("ReEncrypt returns the same blob")
			}
			for _, r := range w.Audit.Records() {
				if r.Caller != nil && r.Door != door.String() {
					t.Errorf("the record of %s names the door %q", r.Operation, r.Door)
				}
			}
		})
	}
}

func TestADoorHasAName(t *testing.T) {
	for door, want := range map[kms.Door]string{kms.DoorNative: "native", kms.DoorAlibabaAdvance: "AlibabaAdvance", 4: "Door(4)", -1: "Door(-1)"} {
		if got := fmt.Sprint(door); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for number, name := range kmsv1.Door_name { // one enum, in two places
		if door := kms.Door(number); (door.String() == "native") != (name == "DOOR_UNSPECIFIED") || door.String() == fmt.Sprintf("Door(%d)", number) {
			t.Errorf("%s is the door %v", name, door)
		}
	}
}
