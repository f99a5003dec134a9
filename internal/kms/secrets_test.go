package kms_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/secrettest"
)

// Whatever is asked of it, the key service writes no key anywhere.
func TestNoKeyIsInErrorsLogsAuditEventsMetricsOrTheStore(t *testing.T) {
	w := settled(t)
	var trail bytes.Buffer
	_, material := w.Material(t, ordersKey)
	secrets := map[string][]byte{
		"root key":   w.Store.Secrets()["datakeys-root-key"].Data["key"],
		"master key": material.AppendTo(insecuresecret.Token{}, nil),
	}
	var errs strings.Builder
	note := func(err error) {
		fmt.Fprintf(&errs, "%v %+v %#v %s %q\n", err, err, err, err, err)
	}

	data := orders()
	made, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 64, Door: kms.DoorAWS})
	if err != nil {
		t.Fatal(err)
	}
	secrets["generated data key"] = bytes.Clone(raw(made.Plaintext))
	blob := w.Sealed(t, data)
	opened, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: data.EncryptionContext})
	if err != nil {
		t.Fatal(err)
	}
	secrets["declared data key"] = bytes.Clone(raw(opened.Plaintext))

	own, err := envelope.NewPlaintext(100)
	if err != nil {
		t.Fatal(err)
	}
	secrets["caller's secret"] = raw(own)
	pair, err := w.GenerateDataKeyPair(t.Context(), allKeys, kms.GenerateDataKeyPairRequest{KeyID: "orders", KeyPairSpec: "ECC_NIST_EDWARDS25519", Door: kms.DoorAWS})
	if err != nil {
		t.Fatal(err)
	}
	secrets["private key"] = raw(pair.PrivateKey)
	for _, token := range []string{app, keyUser, allKeys, nobody, stranger, ""} {
		for _, key := range []string{"orders", "none", theirsKey.KeyID, "alias/none"} {
			cipher, err := w.Encrypt(t.Context(), token, kms.EncryptRequest{KeyID: key, Plaintext: own, Door: kms.DoorAlibaba})
			note(err)
			again, err := w.ReEncrypt(t.Context(), token, kms.ReEncryptRequest{
				CiphertextBlob: cipher.CiphertextBlob, SourceIV: cipher.IV, DestinationKeyID: "other", Door: kms.DoorAlibaba,
			})
			note(err)
			fmt.Fprintf(&errs, "%v %+v\n", cipher, again)
		}
		for _, b := range w.Blobs(t) {
			_, err := w.Decrypt(t.Context(), token, kms.DecryptRequest{CiphertextBlob: b})
			note(err)
			_, err = w.OpenDataKey(t.Context(), data, b)
			note(err)
		}
		_, err := w.Decrypt(t.Context(), token, kms.DecryptRequest{CiphertextBlob: made.CiphertextBlob, EncryptionContext: map[string]string{"no": "key"}})
		note(err)
		results, err := w.BatchDecrypt(t.Context(), token, []kms.DecryptRequest{{CiphertextBlob: blob, EncryptionContext: data.EncryptionContext}, {CiphertextBlob: blob}})
		note(err)
		for _, r := range results {
			note(r.Err)
			fmt.Fprintf(&errs, "%v %+v\n", r, r)
		}
	}
	rotated, err := w.RotateMasterKey(t.Context(), ordersKey, 1, "now")
	note(err)
	again, err := w.RewrapDataKey(t.Context(), data, blob)
	note(err)
	fmt.Fprintf(&errs, "%+v %+v\n", rotated, again)
	if again.KeyVersion != 2 {
		t.Errorf("wrapped by version %d", again.KeyVersion)
	}
	w.Audit.Err = errors.New("disk full")
	_, err = w.RewrapDataKey(t.Context(), data, blob)
	note(err)
	_, err = w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: data.EncryptionContext})
	note(err)
	w.Audit.Err = nil
	w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1"][90] ^= 1 })
	_, err = w.MasterKey(t.Context(), ordersKey)
	note(err)
	_, err = w.RotateMasterKey(t.Context(), ordersKey, 2, "")
	note(err)

	auditor := kms.NewJSONAuditor(&trail)
	for _, r := range w.Audit.Records() {
		if err := auditor.Record(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	families, err := w.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var metrics strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&metrics, f); err != nil {
			t.Fatal(err)
		}
	}
	stored := map[string]map[string][]byte{}
	for name, s := range w.Store.Secrets() {
		if name != "datakeys-root-key" { // the one named exception
			stored[name] = s.Data
		}
	}
	etcd, err := json.Marshal(stored)
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{
		"an error":       errs.String(),
		"the log":        w.Log.String(),
		"the audit log":  trail.String(),
		"an event":       fmt.Sprintf("%+v", w.Events.Denials()),
		"a metric":       metrics.String(),
		"another Secret": string(etcd),
	} {
		if text == "" && where != "the log" {
			t.Errorf("%s: nothing to search", where)
		}
		secrettest.CheckText(t, where, text, secrets)
	}
	if secrettest.Find(string(w.Store.Secrets()["datakeys-root-key"].Data["key"]), secrets["root key"]) == "" {
		t.Error("the search does not find the root key where it is")
	}
}

func TestNothingThatHoldsADataKeyPrintsIt(t *testing.T) {
	w := settled(t)
	p, err := envelope.NewPlaintext(64)
	if err != nil {
		t.Fatal(err)
	}
	_, material := w.Material(t, ordersKey)
	type holder struct{ inner any }
	response := kms.DecryptResponse{KeyARN: "arn", KeyVersion: 1, Plaintext: p}
	for name, v := range map[string]any{
		"GenerateDataKeyResponse":     kms.GenerateDataKeyResponse{Plaintext: p},
		"DecryptResponse":             response,
		"BatchDecryptResult":          kms.BatchDecryptResult{Response: response},
		"EncryptRequest":              kms.EncryptRequest{KeyID: "orders", Plaintext: p},
		"GenerateDataKeyPairResponse": kms.GenerateDataKeyPairResponse{PublicKey: []byte("public"), PrivateKey: p},
		"a list of results":           []kms.BatchDecryptResult{{Response: response}},
		"somebody's struct":           holder{response},
		"a private field":             struct{ r kms.DecryptResponse }{response},
		"a Service":                   w.Service,
		"a Service, no pointer":       *w.Service,
	} {
		t.Run(name, func(t *testing.T) {
			secrettest.CheckPrints(t, name, v, map[string][]byte{"data key": raw(p), "master key": material.AppendTo(insecuresecret.Token{}, nil)})
		})
	}
}

func TestMetricsCountOperationsByCode(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	good := kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	for token, times := range map[string]int{app: 3, nobody: 2} {
		for range times {
			_, _ = w.Decrypt(t.Context(), token, good)
		}
	}
	_, err := w.Authenticate(t.Context(), "stolen-token")
	w.TurnedAway(kms.OperationDecrypt, w.Now(), err)
	if _, err := w.BatchDecrypt(t.Context(), app, []kms.DecryptRequest{good, {}}); err != nil {
		t.Fatal(err)
	}
	families, err := w.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		`datakeys_kms_operations_total{code="OK",operation="Decrypt"} 4`,
		`datakeys_kms_operations_total{code="Denied",operation="Decrypt"} 2`,
		`datakeys_kms_operations_total{code="Unauthenticated",operation="Decrypt"} 1`,
		`datakeys_kms_operations_total{code="InvalidArgument",operation="Decrypt"} 1`,
		`datakeys_kms_operations_total{code="OK",operation="BatchDecrypt"} 1`,
		`datakeys_kms_operations_total{code="OK",operation="GenerateDataKeyWithoutPlaintext"} 1`,
		`datakeys_kms_operations_total{code="OK",operation="CreateMasterKeyVersion"} 3`,
		`datakeys_kms_operation_duration_seconds_count{operation="Decrypt"} 8`,
		`datakeys_root_key_embedded 1`,
	} {
		if !strings.Contains(text.String(), want+"\n") {
			t.Errorf("there is no %s", want)
		}
	}
	if strings.Contains(text.String(), "stolen") || strings.Contains(text.String(), "team-a") {
		t.Error("a label has something that a caller chose")
	}
}
