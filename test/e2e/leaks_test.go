//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// spellings are the ways in which a secret may stand in a file: raw, hex in both cases, and base64 in both alphabets at each of the
// three places at which it can begin inside longer base64.
func spellings(secret []byte) map[string][]byte {
	s := map[string][]byte{
		"raw":       secret,
		"hex":       []byte(hex.EncodeToString(secret)),
		"upper hex": []byte(strings.ToUpper(hex.EncodeToString(secret))),
	}
	for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "url base64": base64.RawURLEncoding} {
		for offset := range 3 {
			padded := append(make([]byte, offset), secret...)
			text := encoding.EncodeToString(padded)
			first := (offset*8 + 5) / 6 // the characters before it hold bits of what stands in front
			last := len(padded) * 8 / 6 // the characters after it hold bits of what stands behind
			s[fmt.Sprintf("%s at %d", name, offset)] = []byte(text[first:last])
		}
	}
	return s
}

// search returns where in the files under the folders any spelling of a secret stands, by the secret's name, so that what this
// returns can be printed. It looks at every place once: what stands there is looked up by its first eight bytes.
func search(folders []string, secrets map[string][]byte) (found []string, bytesRead int64, err error) {
	type needle struct {
		name string
		text []byte
	}
	needles := map[uint64][]needle{}
	for name, secret := range secrets {
		for spelling, text := range spellings(secret) {
			first := binary.NativeEndian.Uint64(text)
			needles[first] = append(needles[first], needle{name + " (" + spelling + ")", text})
		}
	}
	for _, folder := range folders {
		err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				return nil // a log that was rotated away
			}
			if err != nil {
				return err
			}
			bytesRead += int64(len(content))
			for i := 0; i+8 <= len(content); i++ {
				for _, n := range needles[binary.NativeEndian.Uint64(content[i:])] {
					if bytes.HasPrefix(content[i:], n.text) {
						found = append(found, n.name+" in "+path)
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return found, bytesRead, nil
}

// nothingLeaked is searchForLeaks after everything else.
func nothingLeaked(t *testing.T) {
	if dataKeys, masterKeys := searchForLeaks(t); dataKeys < 10 || masterKeys < 5 {
		t.Fatalf("only %d data keys and %d master keys were looked for: the other tests have to run first", dataKeys, masterKeys)
	}
}

// searchForLeaks searches what etcd stores, all logs and all events of the run for every data key that a test has opened and every
// version of every master key, and finds a random value that was planted in the data files of etcd and in a log. It returns how many it
// looked for.
func searchForLeaks(t *testing.T) (dataKeys, masterKeys int) {
	t.Helper()
	secrets := map[string][]byte{}
	seenPlaintexts.Range(func(name, key any) bool {
		secrets[name.(string)] = key.([]byte)
		return true
	})
	dataKeys = len(secrets)
	var materials corev1.SecretList
	if err := kube.client.List(t.Context(), &materials, client.InNamespace(systemNamespace), client.MatchingFields{"type": string(v1alpha1.SecretTypeMasterKey)}); err != nil {
		t.Fatal(err)
	}
	for _, material := range materials.Items {
		for version, key := range masterKeyMaterials(t, kube, material.Name) {
			secrets[fmt.Sprintf("master key %s, version %d", material.Name, version)] = key.AppendTo(insecuresecret.Token{}, nil)
		}
	}

	planted := make([]byte, 32)
	if _, err := rand.Read(planted); err != nil {
		t.Fatal(err)
	}
	namespace := kube.namespace(t, "restricted")
	kube.create(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "planted"}, Data: map[string][]byte{"raw": planted}})
	talkative := pod(namespace, "talkative", "none")
	talkative.Labels = nil
	talkative.Spec = podSpec("sha256", hex.EncodeToString(planted)) // there is no socket: the reader complains, and names what it asked for
	talkative.Spec.ServiceAccountName = "default"
	kube.create(t, talkative)
	kube.waitPod(t, namespace, talkative.Name, "has spoken", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && (p.Status.ContainerStatuses[0].State.Terminated != nil || p.Status.ContainerStatuses[0].LastTerminationState.Terminated != nil)
	})

	folder := func(name string) string { return filepath.Join(root, kube.state, name) }
	stored, logged := folder("etcd"), []string{folder("log"), folder("podlogs")}
	for what, folders := range map[string][]string{"etcd": {stored}, "the logs": logged} {
		found, read, err := search(folders, map[string][]byte{"the planted value": planted})
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			t.Errorf("the value that was planted in %s is not found in %d bytes: this search finds nothing", what, read)
		}
	}

	found, read, err := search(append(logged, stored), secrets)
	if err != nil {
		t.Fatal(err)
	}
	events := &eventsv1.EventList{}
	if err := kube.client.List(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	dump := filepath.Join(t.TempDir(), "events")
	text, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dump, text, 0o600); err != nil {
		t.Fatal(err)
	}
	inEvents, _, err := search([]string{filepath.Dir(dump)}, secrets)
	if err != nil {
		t.Fatal(err)
	}
	for _, leak := range append(found, inEvents...) {
		t.Error(leak)
	}
	t.Logf("looked for %d data keys and %d versions of %d master keys in %d MB of etcd and logs and in %d events",
		dataKeys, len(secrets)-dataKeys, len(materials.Items), read>>20, len(events.Items))
	return dataKeys, len(materials.Items)
}

func TestSearchFindsEverySpelling(t *testing.T) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	surround := func(before, after int, encode func([]byte) []byte) []byte {
		plain := append(bytes.Repeat([]byte{0x5a}, before), secret...)
		return encode(append(plain, bytes.Repeat([]byte{0xa5}, after)...))
	}
	encoders := map[string]func([]byte) []byte{
		"raw":        func(b []byte) []byte { return b },
		"hex":        func(b []byte) []byte { return []byte(hex.EncodeToString(b)) },
		"upper hex":  func(b []byte) []byte { return []byte(strings.ToUpper(hex.EncodeToString(b))) },
		"base64":     func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) },
		"url base64": func(b []byte) []byte { return []byte(base64.RawURLEncoding.EncodeToString(b)) },
	}
	for name, encode := range encoders {
		for before := range 5 {
			for after := range 4 {
				folder := t.TempDir()
				if err := os.WriteFile(filepath.Join(folder, "f"), surround(before, after, encode), 0o600); err != nil {
					t.Fatal(err)
				}
				found, _, err := search([]string{folder}, map[string][]byte{"the secret": secret})
				if err != nil || len(found) == 0 {
					t.Errorf("%s with %d bytes before and %d after: found %v, error %v", name, before, after, found, err)
				}
			}
		}
	}
}
