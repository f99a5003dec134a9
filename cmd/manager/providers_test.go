package main

import (
	"crypto/rand"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
	"github.com/datakeys/datakeys/internal/porttest"
	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
)

// A provider is a kind of root key, and the service behind it.
type provider struct {
	uri string
	// down takes the service down, and up brings it back; nil where there is none.
	down, up func(*testing.T)
}

// providers are all of them. The services have the interfaces of the real ones; that of kmsv2 is a real one.
func providers(t *testing.T) map[string]provider {
	t.Helper()
	hsm := rootkeytest.NewSoftHSM(t)
	transit, aws, alicloud := rootkeytest.NewTransit("s.test-token"), rootkeytest.NewAWSKMS("eu-west-1"), rootkeytest.NewAlicloudKMS()
	transit.CreateKey("root", "aes256-gcm96", false)
	aws.CreateKey(awsKey)
	alicloud.CreateKey(awsKey)
	service := func(uri string, s *rootkeytest.Service) provider {
		t.Cleanup(s.Close)
		return provider{uri, func(*testing.T) { s.Misbehave(rootkeytest.AnyOperation, rootkeytest.Drop) }, func(*testing.T) { s.Behave() }}
	}
	return map[string]provider{
		"embedded": {uri: seal.DefaultRootKey},
		"file":     {uri: newFileRoot(t)},
		"kmsv2": {
			hsm.RootKey(),
			func(t *testing.T) { t.Helper(); hsm.Kill(t) },
			func(t *testing.T) { t.Helper(); hsm.Start(t) },
		},
		"transit":     service(transit.RootKey(t, "root"), &transit.Service),
		"awskms":      service(aws.RootKey(t, awsKey), &aws.Service),
		"alicloudkms": service(alicloud.RootKey(t, awsKey), &alicloud.Service),
	}
}

// newFileRoot returns the URI of a root key in a file of its own.
func newFileRoot(t *testing.T) (uri string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root-key")
	key := make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

// A manager comes back with each root key: every data key opens for the pods as what it was first. Where the service of the root
// key is down when a manager starts, it is not ready, makes nothing, and tries again until the service is there. Where it goes
// down later, what runs serves on, and makes new keys too; but a manager that starts then is not ready.
func TestAnInstallationComesBackWithEachRootKey(t *testing.T) {
	for name, root := range providers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := &journey{place: newPlace(t)}
			flags := seal.Config{RootKey: root.uri}
			j.seal = flags
			address, health := porttest.Reserve(t).String(), porttest.Reserve(t).String()
			checked := func(o *options) { o.healthBind = health }

			if root.down != nil {
				root.down(t)
			}
			const failedTry = "The sealing keys cannot be opened, trying again"
			var tries <-chan struct{}
			j.log, tries = logFor(failedTry)
			stop := j.start(t, controllerstest.NewFaults(0, 0), often, at(address), checked)
			j.create(t, j.masterKey("key"), j.request("orders", "key"), j.keyPair("signing", "key"))
			if root.down != nil {
				for range 2 {
					<-tries
				}
				checkReady(t, health, http.StatusInternalServerError)
				var secrets corev1.SecretList
				ofSealingKeys := client.MatchingFields{"type": v1alpha1.SecretTypeSealingKeys}
				if err := j.client.List(t.Context(), &secrets, client.InNamespace(j.system), ofSealingKeys); err != nil || len(secrets.Items) > 0 {
					t.Errorf("down at the start: sealing keys were made: %v", err)
				}
				root.up(t)
			}
			j.keep(t, flags, "orders", "signing")
			checkReady(t, health, http.StatusOK)
			j.pod = j.newPod(t)
			j.ask(t, address)

			if root.down != nil {
				root.down(t)
				j.create(t, j.masterKey("later"), j.request("later", "later"), j.request("more", "key"))
				j.waitForRequest(t, "later")
				j.waitForRequest(t, "more")
				j.ask(t, address)
				checkReady(t, health, http.StatusOK)

				other, otherHealth := *j.place, porttest.Reserve(t).String()
				other.log, tries = logFor(failedTry)
				stopOther := other.start(t, controllerstest.NewFaults(0, 0), func(o *options) { o.healthBind = otherHealth })
				<-tries
				checkReady(t, otherHealth, http.StatusInternalServerError)
				stopOther()
				root.up(t)
				j.keep(t, flags, "later", "more")
				j.ask(t, address)
			}

			stop()
			j.start(t, controllerstest.NewFaults(0, 0), often, at(address), checked)
			j.ask(t, address)
			checkReady(t, health, http.StatusOK)
			j.checkKept(t, flags)
			j.checkVerdict(t, flags, seal.VerdictSettled)
		})
	}
}

// logFor is a log that tells of each line with a text, once for as many as nobody has heard of yet.
func logFor(text string) (logr.Logger, <-chan struct{}) {
	told := make(chan struct{}, 1)
	return funcr.New(func(_, args string) {
		if strings.Contains(args, text) {
			select {
			case told <- struct{}{}:
			default:
			}
		}
	}, funcr.Options{}), told
}

// checkReady asks for the health check that says whether a manager is unsealed.
func checkReady(t *testing.T, address string, want int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/readyz/unsealed", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	if response.StatusCode != want {
		t.Errorf("the health check says %d, want %d", response.StatusCode, want)
	}
}
