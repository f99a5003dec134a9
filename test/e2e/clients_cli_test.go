//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// generate has the CLI make data keys by every option, and the SDK open them.
func (c *clients) generate(t *testing.T) {
	file := func(name, content string) string {
		path := filepath.Join(c.home, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file://" + path
	}
	cli, sdk := cli{c.app, c.home}, &awsUser{clients: c, caller: c.sdk}
	inJSON, inYAML := `{"KeyId":"alias/orders-prod","NumberOfBytes":24}`, "KeyId: alias/orders-prod\nNumberOfBytes: 48\n"
	key256 := []string{"--key-id", c.keyID, "--key-spec", "AES_256"}
	twoPairs := fields{"tenant": "a", "app": "b c"}
	for name, test := range map[string]struct {
		args    []string
		context fields
		bytes   int
	}{
		"by key ID":          {key256, nil, 32},
		"by ARN":             {[]string{"--key-id", c.arn, "--key-spec", "AES_128"}, nil, 16},
		"by alias":           {[]string{"--key-id", c.alias, "--number-of-bytes", "64"}, nil, 64},
		"by the alias's ARN": {[]string{"--key-id", c.aliasARN, "--number-of-bytes", "1024"}, nil, 1024},
		"with a context":     {slices.Concat(key256, []string{"--encryption-context", "tenant=a,app=b c"}), twoPairs, 32},
		"with one as JSON":   {slices.Concat(key256, []string{"--encryption-context", `{"app":"b c","tenant":"a"}`}), twoPairs, 32},
		"from JSON":          {[]string{"--cli-input-json", file("in.json", inJSON)}, nil, 24},
		"from YAML":          {[]string{"--cli-input-yaml", file("in.yaml", inYAML)}, nil, 48},
		"a flag before a file": {
			[]string{"--cli-input-json", file("in2.json", strings.Replace(inJSON, c.alias, "none", 1)), "--key-id", c.arn}, nil, 24,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			made, failed := cli.run(t, append([]string{"generate-data-key-without-plaintext"}, test.args...)...)
			if failed != nil {
				t.Fatalf("got %+v", *failed)
			}
			if made["KeyId"] != c.arn || len(made) != 2 {
				t.Errorf("got %d members, of the key %v, want CiphertextBlob and KeyId", len(made), made["KeyId"])
			}
			if opened := sdk.opens(t, c.arn, made["CiphertextBlob"], test.context); len(opened) != test.bytes {
				t.Errorf("it opens to %d bytes, want %d", len(opened), test.bytes)
			}
		})
	}
	t.Run("a grant token", func(t *testing.T) {
		t.Parallel()
		_, failed := cli.run(t, "generate-data-key-without-plaintext", "--key-id", c.arn, "--key-spec", "AES_256", "--grant-tokens", "a", "b")
		if failed == nil || failed.Code != "InvalidGrantTokenException" {
			t.Errorf("got %+v", failed)
		}
	})
	t.Run("its own pages", func(t *testing.T) {
		t.Parallel()
		list, failed := cli.run(t, "list-keys", "--page-size", "1")
		want := slices.Sorted(slices.Values([]string{c.arn, c.other}))
		if got := slices.Sorted(slices.Values(members(t, list["Keys"], "KeyArn"))); failed != nil || !slices.Equal(got, want) {
			t.Errorf("list-keys by pages of one: got %v, want %v (%+v)", got, want, failed)
		}
	})
	t.Run("a skeleton, which is right with a key in it", func(t *testing.T) {
		t.Parallel()
		skeleton, failed := cli.run(t, "generate-data-key-without-plaintext", "--generate-cli-skeleton")
		want := fields{
			"KeyId": "", "EncryptionContext": map[string]any{"KeyName": ""}, "KeySpec": "AES_256", "NumberOfBytes": 0.0, "GrantTokens": []any{""},
		}
		if diff := cmp.Diff(want, skeleton); diff != "" || failed != nil {
			t.Errorf("the skeleton (-want +got, %+v):\n%s", failed, diff)
		}
		for _, member := range []string{"NumberOfBytes", "GrantTokens"} {
			delete(skeleton, member)
		}
		skeleton["KeyId"], skeleton["KeySpec"] = c.keyID, "AES_256"
		made, failed := cli.run(t, "generate-data-key-without-plaintext", "--cli-input-json", string(jsonOf(t, skeleton)))
		if failed != nil {
			t.Fatalf("got %+v", *failed)
		}
		sdk.opens(t, c.arn, made["CiphertextBlob"], fields{"KeyName": ""})
	})
	t.Run("a skeleton in YAML", func(t *testing.T) {
		t.Parallel()
		skeleton, stderr, err := cli.output(t, "generate-data-key-without-plaintext", "--generate-cli-skeleton", "yaml-input")
		if err != nil || !bytes.Contains(skeleton, []byte("\nEncryptionContext:")) || strings.Contains(stderr, "error") {
			t.Errorf("got %q, %q, %v", skeleton, stderr, err)
		}
	})
}

// declared opens the blob in the Secret of a DataKeyRequest with what the Secret says.
func (c *clients) declared(t *testing.T) {
	var secret corev1.Secret
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: "orders"}, &secret); err != nil {
		t.Fatal(err)
	}
	u := &awsUser{clients: c, caller: cli{c.app, c.home}}
	var context fields
	if err := json.Unmarshal(secret.Data[v1alpha1.SecretKeyEncryptionContext], &context); err != nil {
		t.Fatal(err)
	}
	blob := b64(secret.Data[v1alpha1.SecretKeyCiphertextBlob])
	if !bytes.Equal(u.opens(t, c.arn, blob, context), plaintextOf(t, c.namespace, "orders")) {
		t.Error("the CLI opens another data key")
	}
	u.refuses(t, "Decrypt", decrypting(blob, fields{"app": "other"}), exception{name: invalidCiphertext})
}
