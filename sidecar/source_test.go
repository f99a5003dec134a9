package sidecar

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// sealBlob makes a blob that parses; nobody opens it here.
func sealBlob(t testing.TB, h envelope.Header) []byte {
	t.Helper()
	h.KeyID, h.KeyVersion, h.MaterialID = envelope.NewKeyID(), 1, envelope.NewMaterialID()
	p, err := envelope.NewPlaintext(32)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := envelope.NewMaterial().Seal(h, envelope.AssociatedData{}, p)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func dataKeyBlob(t testing.TB, name string, generation uint32) []byte {
	t.Helper()
	return sealBlob(t, envelope.Header{
		Kind: envelope.KindDataKey, Scope: envelope.Scope{Namespace: "team-a", Name: name, Generation: generation},
	})
}

// TestNamesAreTheAPIs: the sidecar repeats these, so as not to link what api/v1alpha1 imports.
func TestNamesAreTheAPIs(t *testing.T) {
	declared, err := os.ReadFile(filepath.Join("..", "api", "v1alpha1", "labels.go"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"SecretKeyCiphertextBlob": ciphertextBlobFile, "SecretKeyEncryptionContext": encryptionContextFile,
		"SecretKeyAAD": aadFile, "AlgorithmAESGCM": algorithmAESGCM,
	} {
		if !regexp.MustCompile(name + `\s+= "` + value + `"`).Match(declared) {
			t.Errorf("%s is not declared as %q", name, value)
		}
	}
}

// newest reads the newest generation of orders.
func newest(s *Source) (Sealed, error) {
	secret, err := s.Read("orders")
	if err != nil {
		return Sealed{}, err
	}
	return secret.Newest.Sealed, secret.Newest.Err
}

func TestSource(t *testing.T) {
	blob := dataKeyBlob(t, "orders", 7)
	for name, test := range map[string]struct {
		entries map[string][]byte
		want    Sealed // the newest
		err     error
		detail  string
	}{
		"a blob alone": {
			map[string][]byte{"ciphertextBlob": blob}, Sealed{CiphertextBlob: blob, Generation: 7}, nil, "",
		},
		"a blob with its context, and what else the Secret holds": {
			map[string][]byte{
				"ciphertextBlob": blob, "encryptionContext": []byte(`{"tenant":"a","":"é"}`), "generation": []byte("9"),
			},
			Sealed{CiphertextBlob: blob, EncryptionContext: map[string]string{"tenant": "a", "": "é"}, Generation: 7},
			nil, "",
		},
		"a blob with its aad, which may be any bytes": {
			map[string][]byte{"ciphertextBlob": blob, "aad": {0, '\n', 0xff}, "publicKey": []byte("of somebody")},
			Sealed{CiphertextBlob: blob, AAD: []byte{0, '\n', 0xff}, Generation: 7},
			nil, "",
		},
		"an oversized aad": {
			map[string][]byte{"ciphertextBlob": blob, "aad": make([]byte, 8193)}, Sealed{}, errBlobInvalid, "at most 8192",
		},
		"an aad beside a context": {
			map[string][]byte{"ciphertextBlob": blob, "aad": {1}, "encryptionContext": []byte(`{"a":"b"}`)},
			Sealed{}, errBlobInvalid, "must not both be there",
		},
		"no entries": {map[string][]byte{}, Sealed{}, errSecretMissing, `DataKeyRequest "orders"`},
		"another entry only": {
			map[string][]byte{"iv": blob[:12]}, Sealed{}, errSecretMissing, "no entry ciphertextBlob",
		},
		"an empty blob":     {map[string][]byte{"ciphertextBlob": nil}, Sealed{}, errBlobInvalid, "ciphertextBlob"},
		"a blob cut off":    {map[string][]byte{"ciphertextBlob": blob[:60]}, Sealed{}, errBlobInvalid, "ciphertextBlob"},
		"a blob in base64":  {map[string][]byte{"ciphertextBlob": []byte("AQEB")}, Sealed{}, errBlobInvalid, "ciphertextBlob"},
		"an oversized blob": {map[string][]byte{"ciphertextBlob": make([]byte, 6145)}, Sealed{}, errBlobInvalid, "at most 6144"},
		"the blob of another data key": {
			map[string][]byte{"ciphertextBlob": dataKeyBlob(t, "payments", 1)}, Sealed{}, errBlobInvalid, `"payments"`,
		},
		"a blob of another kind": {
			map[string][]byte{"ciphertextBlob": sealBlob(t, envelope.Header{Kind: envelope.KindAWS})},
			Sealed{},
			errBlobInvalid, "of kind AWS",
		},
		"a context that is a list": {
			map[string][]byte{"ciphertextBlob": blob, "encryptionContext": []byte(`["a"]`)},
			Sealed{},
			errBlobInvalid, "JSON object of strings",
		},
		"a context of numbers": {
			map[string][]byte{"ciphertextBlob": blob, "encryptionContext": []byte(`{"a":1}`)},
			Sealed{},
			errBlobInvalid, "JSON object of strings",
		},
		"an oversized context": {
			map[string][]byte{
				"ciphertextBlob": blob, "encryptionContext": []byte(`{"a":"` + strings.Repeat("a", 64<<10) + `"}`),
			}, Sealed{}, errBlobInvalid, "at most 65536",
		},
	} {
		t.Run(name, func(t *testing.T) {
			mount := sidecartest.NewMount(t)
			mount.Put(t, "orders", test.entries)
			source := NewSource(mount.Dir)
			for _, time := range []string{"first", "second"} {
				got, err := newest(source)
				if !errors.Is(err, test.err) || err != nil && !strings.Contains(err.Error(), test.detail) {
					t.Errorf("%s read: got error %v, want %v with %q", time, err, test.err, test.detail)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%s read: (-want +got):\n%s", time, diff)
				}
			}
		})
	}
}

// What makes the keeper ask again is that anything that it sends has changed.
func TestSealedThatDiffers(t *testing.T) {
	sealed := Sealed{CiphertextBlob: []byte("blob"), EncryptionContext: map[string]string{"a": "b"}, AAD: []byte("aad"), Generation: 1}
	for name, change := range map[string]func(*Sealed){
		"the blob":    func(s *Sealed) { s.CiphertextBlob = []byte("another") },
		"the context": func(s *Sealed) { s.EncryptionContext = map[string]string{"a": "c"} },
		"the aad":     func(s *Sealed) { s.AAD = []byte("another") },
	} {
		other := sealed
		change(&other)
		if !sealed.equal(sealed) || sealed.equal(other) {
			t.Errorf("%s: another one is taken for the same", name)
		}
	}
}

func TestSourceFollowsTheKubelet(t *testing.T) {
	mount := sidecartest.NewMount(t)
	source := NewSource(mount.Dir)
	if _, err := source.Read("orders"); !errors.Is(err, errSecretMissing) {
		t.Errorf("not mounted: got %v", err)
	}
	mount.Put(t, "orders", nil)
	if _, err := source.Read("orders"); !errors.Is(err, errSecretMissing) {
		t.Errorf("mounted without entries: got %v", err)
	}
	for generation := uint32(1); generation <= 3; generation++ {
		mount.Put(t, "orders", map[string][]byte{"ciphertextBlob": dataKeyBlob(t, "orders", generation)})
		got, err := newest(source)
		if err != nil || got.Generation != generation {
			t.Errorf("generation %d: got %d, %v", generation, got.Generation, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(mount.Dir, "orders")); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Read("orders"); !errors.Is(err, errSecretMissing) {
		t.Errorf("taken away: got %v", err)
	}
}

func TestSourceReadsPlainDirectories(t *testing.T) {
	dir := t.TempDir()
	source := NewSource(dir)
	if err := os.Mkdir(filepath.Join(dir, "orders"), 0o700); err != nil {
		t.Fatal(err)
	}
	for generation := uint32(1); generation <= 2; generation++ {
		blob := dataKeyBlob(t, "orders", generation)
		if err := os.WriteFile(filepath.Join(dir, "orders", "ciphertextBlob"), blob, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := newest(source); err != nil || got.Generation != generation {
			t.Errorf("generation %d: got %d, %v", generation, got.Generation, err)
		}
	}
}

// TestSourceReadsOneVersion swaps the Secret while it is read: blob and context always belong together.
func TestSourceReadsOneVersion(t *testing.T) {
	mount := sidecartest.NewMount(t)
	blobs := [][]byte{dataKeyBlob(t, "orders", 1), dataKeyBlob(t, "orders", 2)}
	put := func(i int) {
		mount.Put(t, "orders", map[string][]byte{
			"ciphertextBlob": blobs[i], "encryptionContext": []byte([]string{`{"of":"0"}`, `{"of":"1"}`}[i]),
		})
	}
	put(0)
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		for i := range 200 {
			put(i % 2)
		}
	}()
	source := NewSource(mount.Dir)
	for reading := true; reading; {
		select {
		case <-swapped:
			reading = false
		default:
		}
		got, err := newest(source)
		if err != nil {
			t.Fatal(err)
		}
		of := 0
		if bytes.Equal(got.CiphertextBlob, blobs[1]) {
			of = 1
		}
		if got.EncryptionContext["of"] != string(rune('0'+of)) {
			t.Fatalf("the blob of version %d with the context %v", of, got.EncryptionContext)
		}
	}
}
