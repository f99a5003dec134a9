package secrets

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// TestNamesAreTheAPIs: the sidecar repeats these, so as not to link what api/v1alpha1 imports.
func TestNamesAreTheAPIs(t *testing.T) {
	declared, err := os.ReadFile(filepath.Join("..", "..", "..", "api", "v1alpha1", "labels.go"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"SecretKeyCiphertextBlob": ciphertextBlobFile, "SecretKeyEncryptionContext": encryptionContextFile,
		"SecretKeyAAD": aadFile,
	} {
		if !regexp.MustCompile(name + `\s+= "` + value + `"`).Match(declared) {
			t.Errorf("%s is not declared as %q", name, value)
		}
	}
	if !strings.Contains(string(declared), `return entry + "." + strconv.FormatInt(int64(generation), 10)`) ||
		olderFile(12) != "ciphertextBlob.12" {
		t.Errorf("SecretKeyOf is not declared as %s is named", olderFile(12))
	}
	types, err := os.ReadFile(filepath.Join("..", "..", "..", "api", "v1alpha1", "datakeyrequest_types.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(fmt.Sprintf(`const MaxGenerations = %d\n`, MaxGenerations)).Match(types) {
		t.Errorf("MaxGenerations is not declared as %d", MaxGenerations)
	}
}

// newest reads the newest generation of orders.
func newest(s *Source) (keyservice.Sealed, error) {
	secret, err := s.Read("orders")
	if err != nil {
		return keyservice.Sealed{}, err
	}
	return secret.Newest.Sealed, secret.Newest.Err
}

func TestSource(t *testing.T) {
	blob := sidecartest.DataKeyBlob(t, "orders", 7)
	parsed, err := envelope.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	h := parsed.Header
	renewal := keyservice.Renewal{KeyID: h.KeyID, KeyVersion: h.KeyVersion, MaterialID: h.MaterialID, Name: "orders"}
	for name, test := range map[string]struct {
		entries map[string][]byte
		want    keyservice.Sealed // the newest
		err     error
		detail  string
	}{
		"a blob alone": {
			map[string][]byte{"ciphertextBlob": blob}, keyservice.Sealed{CiphertextBlob: blob, Generation: 7, Renewal: renewal}, nil, "",
		},
		"a blob with its context, and what else the Secret holds": {
			map[string][]byte{
				"ciphertextBlob": blob, "encryptionContext": []byte(`{"tenant":"a","":"é"}`), "generation": []byte("9"),
			},
			keyservice.Sealed{CiphertextBlob: blob, EncryptionContext: map[string]string{"tenant": "a", "": "é"}, Generation: 7, Renewal: renewal},
			nil, "",
		},
		"a blob with its aad, which may be any bytes": {
			map[string][]byte{"ciphertextBlob": blob, "aad": {0, '\n', 0xff}, "publicKey": []byte("of somebody")},
			keyservice.Sealed{CiphertextBlob: blob, AAD: []byte{0, '\n', 0xff}, Generation: 7, Renewal: renewal},
			nil, "",
		},
		"an oversized aad": {
			map[string][]byte{"ciphertextBlob": blob, "aad": make([]byte, 8193)}, keyservice.Sealed{}, ErrInvalid, "at most 8192",
		},
		"an aad beside a context": {
			map[string][]byte{"ciphertextBlob": blob, "aad": {1}, "encryptionContext": []byte(`{"a":"b"}`)},
			keyservice.Sealed{}, ErrInvalid, "must not both be there",
		},
		"no entries": {map[string][]byte{}, keyservice.Sealed{}, ErrMissing, `DataKeyRequest "orders"`},
		"another entry only": {
			map[string][]byte{"iv": blob[:12]}, keyservice.Sealed{}, ErrMissing, "no entry ciphertextBlob",
		},
		"an empty blob":     {map[string][]byte{"ciphertextBlob": nil}, keyservice.Sealed{}, ErrInvalid, "ciphertextBlob"},
		"a blob cut off":    {map[string][]byte{"ciphertextBlob": blob[:60]}, keyservice.Sealed{}, ErrInvalid, "ciphertextBlob"},
		"a blob in base64":  {map[string][]byte{"ciphertextBlob": []byte("AQEB")}, keyservice.Sealed{}, ErrInvalid, "ciphertextBlob"},
		"an oversized blob": {map[string][]byte{"ciphertextBlob": make([]byte, 6145)}, keyservice.Sealed{}, ErrInvalid, "at most 6144"},
		"the blob of another data key": {
			map[string][]byte{"ciphertextBlob": sidecartest.DataKeyBlob(t, "payments", 1)}, keyservice.Sealed{}, ErrInvalid, `"payments"`,
		},
		"a blob of another kind": {
			map[string][]byte{"ciphertextBlob": sidecartest.Blob(t, envelope.Header{Kind: envelope.KindAWS})},
			keyservice.Sealed{},
			ErrInvalid, "of kind AWS",
		},
		"a context that is a list": {
			map[string][]byte{"ciphertextBlob": blob, "encryptionContext": []byte(`["a"]`)},
			keyservice.Sealed{},
			ErrInvalid, "JSON object of strings",
		},
		"a context of numbers": {
			map[string][]byte{"ciphertextBlob": blob, "encryptionContext": []byte(`{"a":1}`)},
			keyservice.Sealed{},
			ErrInvalid, "JSON object of strings",
		},
		"an oversized context": {
			map[string][]byte{
				"ciphertextBlob": blob, "encryptionContext": []byte(`{"a":"` + strings.Repeat("a", 64<<10) + `"}`),
			}, keyservice.Sealed{}, ErrInvalid, "at most 65536",
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

// TestSourceAndGenerations: which entries are read as older generations, and what becomes of the others.
func TestSourceAndGenerations(t *testing.T) {
	blobs := map[uint32][]byte{}
	for n := uint32(1); n <= 205; n++ {
		blobs[n] = sidecartest.DataKeyBlob(t, "orders", n)
	}
	// with returns the entries of a Secret whose newest generation is the first, and more entries.
	with := func(generations []uint32, more map[string][]byte) map[string][]byte {
		entries := map[string][]byte{"ciphertextBlob": blobs[generations[0]]}
		for _, n := range generations[1:] {
			entries[fmt.Sprint("ciphertextBlob.", n)] = blobs[n]
			entries[fmt.Sprint("iv.", n)], entries[fmt.Sprint("keyVersion.", n)] = blobs[n][:12], []byte("1")
		}
		maps.Copy(entries, more)
		return entries
	}
	down := func(from, to uint32) (generations []uint32) {
		for n := from; n >= to; n-- {
			generations = append(generations, n)
		}
		return generations
	}
	for name, test := range map[string]struct {
		entries map[string][]byte
		want    []uint32 // that are read, the newest first
		broken  map[uint32]string
		ignored []string
	}{
		"none": {with(down(3, 3), nil), down(3, 3), nil, nil},
		"all":  {with(down(3, 1), nil), down(3, 1), nil, nil},
		"those that are kept, in the order of numbers": {
			with([]uint32{12, 2, 10, 9}, nil), []uint32{12, 10, 9, 2}, nil, nil,
		},
		"as many as there may be": {with(down(100, 1), nil), down(100, 1), nil, nil},
		"one more than that": {
			with(down(101, 1), nil), down(101, 2), nil,
			[]string{`entry "ciphertextBlob.1": at most 100 generations are read`},
		},
		"many more than that": {
			with(down(205, 1), nil), down(205, 106), nil,
			[]string{`entry "ciphertextBlob.105" and 104 more: at most 100 generations are read`},
		},
		"a blob of another generation than its entry": {
			with(down(5, 1), map[string][]byte{"ciphertextBlob.3": blobs[2]}), []uint32{5, 4, 2, 1},
			map[uint32]string{3: `the Secret "orders" does not hold this data key: entry ciphertextBlob.3: the blob is of generation 2`}, nil,
		},
		"the newest's blob once more": {
			with(down(5, 4), map[string][]byte{"ciphertextBlob.3": blobs[5]}), down(5, 4),
			map[uint32]string{3: "the blob is of generation 5"}, nil,
		},
		"a blob that is none": {
			with(down(3, 3), map[string][]byte{"ciphertextBlob.2": nil, "ciphertextBlob.1": []byte("AQEB")}), down(3, 3),
			map[uint32]string{2: "entry ciphertextBlob.2", 1: "entry ciphertextBlob.1"}, nil,
		},
		"an oversized blob": {
			with(down(3, 1), map[string][]byte{"ciphertextBlob.2": make([]byte, 6145)}), []uint32{3, 1},
			map[uint32]string{2: "entry ciphertextBlob.2: must be at most 6144 bytes"}, nil,
		},
		"the blob of another data key": {
			with(down(3, 3), map[string][]byte{"ciphertextBlob.2": sidecartest.DataKeyBlob(t, "payments", 2)}), down(3, 3),
			map[uint32]string{2: `belongs to the DataKeyRequest "payments"`}, nil,
		},
		"a blob of another kind": {
			with(down(3, 3), map[string][]byte{"ciphertextBlob.2": sidecartest.Blob(t, envelope.Header{Kind: envelope.KindAWS})}), down(3, 3),
			map[uint32]string{2: "of kind AWS"}, nil,
		},
		"a newest blob that is none": {
			with(down(3, 1), map[string][]byte{"ciphertextBlob": []byte("AQEB")}), down(2, 1),
			map[uint32]string{0: "entry ciphertextBlob:"}, nil,
		},
		"a generation that is not before the newest": {
			with([]uint32{3, 4, 3, 2}, nil), []uint32{3, 2}, nil,
			[]string{`entry "ciphertextBlob.4" and 1 more: must be of a generation before that of ciphertextBlob, which is 3`},
		},
		"names that are no generation's": {
			with(down(3, 1), map[string][]byte{
				"ciphertextBlob.": blobs[1], "ciphertextBlob.0": blobs[1], "ciphertextBlob.01": blobs[1], "ciphertextBlob.-1": blobs[1],
				"ciphertextBlob.1.": blobs[1], "ciphertextBlob.2147483648": blobs[1], "ciphertextBlob.x": blobs[1],
				"ciphertextblob.1": blobs[1], "ciphertextBlob-1": blobs[1], "publicKey.9": blobs[1],
			}),
			down(3, 1), nil,
			[]string{`entry "ciphertextBlob." and 6 more: must be ciphertextBlob. and a number of 1 to 2147483647 without leading zeros`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			mount := sidecartest.NewMount(t)
			entries := maps.Clone(test.entries)
			entries["encryptionContext"] = []byte(`{"tenant":"a"}`)
			mount.Put(t, "orders", entries)
			source := NewSource(mount.Dir)
			secret, err := source.Read("orders")
			if err != nil {
				t.Fatal(err)
			}
			broken := map[uint32]string{}
			var got []uint32
			for _, entry := range append([]Entry{secret.Newest}, secret.Older...) {
				if entry.Err != nil {
					broken[entry.Generation] = test.broken[entry.Generation]
					if !errors.Is(entry.Err, ErrInvalid) || !strings.Contains(entry.Err.Error(), test.broken[entry.Generation]) {
						t.Errorf("generation %d: got %v, want %q", entry.Generation, entry.Err, test.broken[entry.Generation])
					}
					continue
				}
				got = append(got, entry.Generation)
				if !bytes.Equal(entry.CiphertextBlob, blobs[entry.Generation]) || entry.EncryptionContext["tenant"] != "a" {
					t.Errorf("generation %d has the blob or the context of another", entry.Generation)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("generations (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.broken, broken, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("broken (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.ignored, secret.Ignored); diff != "" {
				t.Errorf("ignored (-want +got):\n%s", diff)
			}
			if again, err := source.Read("orders"); again != secret || err != nil {
				t.Errorf("read again: got another one, or %v", err)
			}
		})
	}
}

// An entry that cannot be read now may be readable later: it is tried again, and no other one waits for it.
func TestSourceTriesEntriesAgain(t *testing.T) {
	mount := sidecartest.NewMount(t)
	blob := sidecartest.DataKeyBlob(t, "orders", 1)
	mount.Put(t, "orders", map[string][]byte{"ciphertextBlob": sidecartest.DataKeyBlob(t, "orders", 2), "ciphertextBlob.1": blob})
	file := filepath.Join(mount.Dir, "orders", "..data", "ciphertextBlob.1")
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
		t.Fatal(err)
	}
	source := NewSource(mount.Dir)
	secret, err := source.Read("orders")
	if err != nil || secret.Newest.Err != nil || secret.Newest.Generation != 2 {
		t.Fatalf("got %v, %v", secret, err)
	}
	if got := secret.Older[0]; got.Err == nil || errors.Is(got.Err, ErrInvalid) || got.Generation != 1 {
		t.Errorf("got generation %d, %v", got.Generation, got.Err)
	}
	if err := errors.Join(os.Remove(file), os.WriteFile(file, blob, 0o600)); err != nil {
		t.Fatal(err)
	}
	if secret, err = source.Read("orders"); err != nil || secret.Older[0].Err != nil {
		t.Errorf("later: got %v, %v", secret, err)
	}
}

// FuzzOlderGeneration: a generation has one name, and no other name is of a generation.
func FuzzOlderGeneration(f *testing.F) {
	for _, name := range []string{
		"ciphertextBlob.1", "ciphertextBlob.100", "ciphertextBlob.2147483647", "ciphertextBlob.2147483648", "ciphertextBlob",
		"ciphertextBlob.", "ciphertextBlob.01", "ciphertextBlob.+1", "ciphertextBlob.1_0", "ciphertextBlob.0x1", "iv.1", "",
	} {
		f.Add(name)
	}
	number := regexp.MustCompile(`^[1-9][0-9]{0,8}$`)
	f.Fuzz(func(t *testing.T, name string) {
		n := olderGeneration(name)
		if n > math.MaxInt32 || n != 0 && olderFile(n) != name {
			t.Errorf("%q is read as generation %d, whose name is %q", name, n, olderFile(n))
		}
		digits, ok := strings.CutPrefix(name, "ciphertextBlob.")
		if ok && number.MatchString(digits) && n == 0 {
			t.Errorf("%q is not read as a generation", name)
		}

		var found candidates
		found.add(name)
		found.add("ciphertextBlob.7")
		older, ignored := found.pick(9)
		want := 1
		if n != 0 && n < 9 {
			want = 2
		}
		if !slices.Contains(older, 7) || len(older) != want {
			t.Errorf("%q: got %v, %q", name, older, ignored)
		}
	})
}

// What makes the keeper ask again is that anything that it sends has changed.
func TestSealedThatDiffers(t *testing.T) {
	sealed := keyservice.Sealed{CiphertextBlob: []byte("blob"), EncryptionContext: map[string]string{"a": "b"}, AAD: []byte("aad"), Generation: 1}
	for name, change := range map[string]func(*keyservice.Sealed){
		"the blob":    func(s *keyservice.Sealed) { s.CiphertextBlob = []byte("another") },
		"the context": func(s *keyservice.Sealed) { s.EncryptionContext = map[string]string{"a": "c"} },
		"the aad":     func(s *keyservice.Sealed) { s.AAD = []byte("another") },
	} {
		other := sealed
		change(&other)
		if !sealed.Equal(sealed) || sealed.Equal(other) {
			t.Errorf("%s: another one is taken for the same", name)
		}
	}
}

func TestSourceFollowsTheKubelet(t *testing.T) {
	mount := sidecartest.NewMount(t)
	source := NewSource(mount.Dir)
	if _, err := source.Read("orders"); !errors.Is(err, ErrMissing) {
		t.Errorf("not mounted: got %v", err)
	}
	mount.Put(t, "orders", nil)
	if _, err := source.Read("orders"); !errors.Is(err, ErrMissing) {
		t.Errorf("mounted without entries: got %v", err)
	}
	for generation := uint32(1); generation <= 3; generation++ {
		mount.Put(t, "orders", map[string][]byte{"ciphertextBlob": sidecartest.DataKeyBlob(t, "orders", generation)})
		got, err := newest(source)
		if err != nil || got.Generation != generation {
			t.Errorf("generation %d: got %d, %v", generation, got.Generation, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(mount.Dir, "orders")); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Read("orders"); !errors.Is(err, ErrMissing) {
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
		blob := sidecartest.DataKeyBlob(t, "orders", generation)
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
	blobs := [][]byte{sidecartest.DataKeyBlob(t, "orders", 1), sidecartest.DataKeyBlob(t, "orders", 2)}
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
