package sidecar

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// pod is a sidecar with what surrounds it.
type pod struct {
	service *sidecartest.KeyService
	mount   *sidecartest.Mount
	logs    *sidecartest.Logs
	config  Config
	stop    context.CancelFunc
	done    chan error
}

func newPod(t testing.TB, names ...string) *pod {
	t.Helper()
	p := &pod{service: sidecartest.NewKeyService(t), mount: sidecartest.NewMount(t), logs: &sidecartest.Logs{}}
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("pod-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.config = Config{
		DataKeys: names, KeysDir: p.mount.Dir, TokenFile: filepath.Join(dir, "token"), Socket: filepath.Join(dir, "s"),
		KeyService: p.service.Address, Roots: p.service.Roots, Leases: Leases{Lease: DefaultLease, Coast: DefaultCoast}, Logger: p.logs.Logger(),
	}
	return p
}

func (p *pod) put(t testing.TB, name string, generation uint32, plaintext []byte) {
	t.Helper()
	bound := map[string]string{"tenant": "a"}
	p.mount.Put(t, name, map[string][]byte{
		"ciphertextBlob":    p.service.Seal(t, name, generation, plaintext, bound),
		"encryptionContext": []byte(`{"tenant":"a"}`),
	})
}

func (p *pod) start(t testing.TB) { t.Helper(); p.startWith(t, newWatchdog()) }

// startWith starts it with a watchdog that the test may hurry.
func (p *pod) startWith(t testing.TB, dog *watchdog) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan error, 1)
	go func() { p.done <- run(ctx, p.config, newDoors, dog) }()
	t.Cleanup(cancel)
}

// key reads a data key as an application does.
func (p *pod) key(t testing.TB, name string) (status int, plaintext []byte) {
	t.Helper()
	response, body := roundTrip(t, p.config.Socket, get("/v1/data-keys/"+name, "Accept: "+mediaBytes))
	return response.StatusCode, body
}

func (p *pod) wait(t testing.TB) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only a failure takes so long
	defer cancel()
	return Wait(ctx, p.config.Socket)
}

func TestRun(t *testing.T) {
	p := newPod(t, "orders", "payments")
	p.put(t, "orders", 1, testPlaintext)
	p.put(t, "payments", 1, []byte("another"))
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	if status, plaintext := p.key(t, "orders"); status != http.StatusOK || !bytes.Equal(plaintext, testPlaintext) {
		t.Errorf("got %d", status)
	}
	if tokens := p.service.Tokens(); len(tokens) != 1 || tokens[0] != "Bearer pod-token" {
		t.Errorf("got %d calls, want one with the pod's token", len(tokens))
	}
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(p.config.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestRunPicksUpALateSecret(t *testing.T) {
	p := newPod(t, "orders")
	p.mount.Put(t, "orders", nil)
	p.start(t)
	waited := make(chan error, 1)
	go func() { waited <- p.wait(t) }()
	p.logs.Await(keystore.ReasonSecretNotFound)
	if status, _ := p.key(t, "orders"); status != http.StatusServiceUnavailable {
		t.Errorf("before: got %d", status)
	}
	p.put(t, "orders", 1, testPlaintext)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if _, plaintext := p.key(t, "orders"); !bytes.Equal(plaintext, testPlaintext) {
		t.Error("after: got something else")
	}
}

func TestRunReportsARefusalAtOnce(t *testing.T) {
	p := newPod(t, "orders", "payments")
	p.put(t, "orders", 1, testPlaintext)
	p.put(t, "payments", 1, testPlaintext)
	p.service.Refuse("payments", codes.PermissionDenied, "may not decrypt datakeyrequests/payments in team-a")
	p.start(t)
	err := p.wait(t)
	for _, want := range []string{`"payments"`, "Refused: AccessDenied", "may not decrypt datakeyrequests/payments"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if status, _ := p.key(t, "payments"); status != http.StatusForbidden {
		t.Errorf("the refused one: got %d", status)
	}
	if status, _ := p.key(t, "orders"); status != http.StatusOK {
		t.Errorf("the other one: got %d", status)
	}
}

func TestRunWaitsForTheKeyService(t *testing.T) {
	p := newPod(t, "orders")
	p.put(t, "orders", 1, testPlaintext)
	p.service.Stop()
	p.start(t)
	p.logs.Await(`"msg":"serving"`) // the socket is there before the key service is
	if response, _ := roundTrip(t, p.config.Socket, get("/healthz")); response.StatusCode != http.StatusOK {
		t.Errorf("/healthz: got %s", response.Status)
	}
	if err := Ready(t.Context(), p.config.Socket); err == nil || !strings.Contains(err.Error(), `data key "orders"`) {
		t.Errorf("Ready: got %v", err)
	}
	p.service.Start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
}

// rotated returns the entries of a Secret with those generations, the newest first, wrapped anew each time.
func (p *pod) rotated(t testing.TB, name string, plaintexts map[uint32][]byte) map[string][]byte {
	t.Helper()
	entries := map[string][]byte{"encryptionContext": []byte(`{"tenant":"a"}`)}
	newest := slices.Max(slices.Collect(maps.Keys(plaintexts)))
	for n, plaintext := range plaintexts {
		entry := fmt.Sprint("ciphertextBlob.", n)
		if n == newest {
			entry = "ciphertextBlob"
		}
		entries[entry] = p.service.Seal(t, name, n, plaintext, map[string]string{"tenant": "a"})
	}
	return entries
}

// TestRunServesAllGenerations rotates a data key, rewraps it, and drops its oldest generation, while an application reads.
func TestRunServesAllGenerations(t *testing.T) {
	p := newPod(t, "orders")
	first, second := bytes.Repeat([]byte("1"), 1024), bytes.Repeat([]byte("2"), 1024)
	wants := func(generation string, want []byte) {
		t.Helper()
		if status, got := p.key(t, "orders"+generation); status != http.StatusOK || !bytes.Equal(got, want) {
			t.Errorf("orders%s: got %d and %d bytes", generation, status, len(got))
		}
	}
	p.mount.Put(t, "orders", p.rotated(t, "orders", map[uint32][]byte{1: first}))
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	wants("", first)
	stop, read := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		for {
			select {
			case <-stop:
				return
			default:
				wants("?generation=1", first)
			}
		}
	}()
	p.mount.Put(t, "orders", p.rotated(t, "orders", map[uint32][]byte{1: first, 2: second}))
	p.logs.Await(`"generation":2`)
	p.logs.Await(`"older generations issued","dataKey":"orders","generations":[1]`)
	close(stop)
	<-read
	wants("", second)
	wants("?generation=2", second)
	wants("?generation=1", first)

	all := map[uint32][]byte{}
	for n := range uint32(secrets.MaxGenerations) {
		all[n+3] = bytes.Repeat([]byte{byte(n)}, 1024)
	}
	locked := lockedMemory(t)
	p.mount.Put(t, "orders", p.rotated(t, "orders", all))
	p.logs.Await(`"generation":102`)
	p.logs.Await(`"generations dropped","dataKey":"orders","generations":[2]`)
	wants("", all[102])
	for n, plaintext := range all {
		wants(fmt.Sprint("?generation=", n), plaintext)
	}
	if status, _ := p.key(t, "orders?generation=2"); status != http.StatusNotFound {
		t.Errorf("a generation that was dropped: got %d", status)
	}
	if n := lockedMemory(t) - locked; n > 256<<10 {
		t.Errorf("%d generations of 1 KiB take %d bytes of locked memory", len(all), n)
	}
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	for _, plaintext := range [][]byte{first, second, all[3]} {
		checkHides(t, "the log", p.logs.String(), plaintext[:32])
	}
}

// lockedMemory is how much memory the process has locked, in bytes. A process may lock 8 MiB.
func lockedMemory(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmLck:")
	var kib int
	if _, err := fmt.Sscanf(after, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// What an older generation lacks keeps no pod from starting.
func TestRunWaitsForTheNewestGenerationAlone(t *testing.T) {
	p := newPod(t, "orders")
	entries := p.rotated(t, "orders", map[uint32][]byte{1: testPlaintext, 2: testPlaintext, 3: testPlaintext, 4: testPlaintext})
	entries["ciphertextBlob.2"] = p.service.Seal(t, "orders", 2, testPlaintext, nil) // with another context
	entries["ciphertextBlob.1"] = entries["ciphertextBlob.3"]
	entries["ciphertextBlob.x"] = nil
	p.mount.Put(t, "orders", entries)
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]int{
		"orders": 200, "orders?generation=4": 200, "orders?generation=3": 200, "orders?generation=2": 403, "orders?generation=1": 503,
		"orders?generation=5": 404,
	} {
		if status, _ := p.key(t, target); status != want {
			t.Errorf("%s: got %d, want %d", target, status, want)
		}
	}
	for _, want := range []string{"the blob is of generation 3", `entry \"ciphertextBlob.x\"`, "BlobRefused"} {
		if n := strings.Count(p.logs.String(), want); n != 1 {
			t.Errorf("%s was logged %d times:\n%s", want, n, p.logs)
		}
	}
}

// TestRunLogsNoPlaintext logs everything that there is to log, at the lowest level, and searches it.
func TestRunLogsNoPlaintext(t *testing.T) {
	p := newPod(t, "orders", "denied")
	p.put(t, "orders", 1, testPlaintext)
	p.put(t, "denied", 1, testPlaintext)
	p.service.Refuse("denied", codes.PermissionDenied, "no")
	p.start(t)
	if err := p.wait(t); err == nil {
		t.Fatal("nothing was refused")
	}
	for _, request := range []string{
		get("/v1/data-keys/orders"), get("/v1/data-keys/orders", "Accept: "+mediaBytes), get("/v1/data-keys"), "junk\r\n\r\n",
	} {
		roundTrip(t, p.config.Socket, request)
	}
	second := bytes.ToUpper(testPlaintext)
	p.put(t, "orders", 2, second)
	p.logs.Await(`"generation":2`)
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	logged := p.logs.String()
	for _, want := range []string{"data key issued", "data key not issued", "stopped"} {
		if !strings.Contains(logged, want) {
			t.Errorf("the log lacks %q:\n%s", want, logged)
		}
	}
	checkHides(t, "the log", logged, testPlaintext)
	checkHides(t, "the log", logged, second)
	checkHides(t, "the log", logged, []byte("pod-token"))
}

func TestRunRefusesWhatCannotWork(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no names":            {func(c *Config) { c.DataKeys = nil }, "data keys: 0 names: must be 1 to 100"},
		"101 names":           {func(c *Config) { c.DataKeys = make([]string, 101) }, "101 names: must be 1 to 100"},
		"a name with a slash": {func(c *Config) { c.DataKeys = []string{"../orders"} }, `"../orders": must be the name`},
		"a name in capitals":  {func(c *Config) { c.DataKeys = []string{"Orders"} }, `"Orders": must be the name`},
		"an empty name":       {func(c *Config) { c.DataKeys = []string{"orders", ""} }, `"": must be the name`},
		"a long name": {
			func(c *Config) { c.DataKeys = []string{strings.Repeat("a", 254)} }, "at most 253 bytes",
		},
		"a name twice":         {func(c *Config) { c.DataKeys = []string{"orders", "orders"} }, `"orders" is named twice`},
		"no keys directory":    {func(c *Config) { c.KeysDir = "" }, `keys directory "": must be an absolute path`},
		"no token file":        {func(c *Config) { c.TokenFile = "token" }, `token file "token": must be an absolute path`},
		"an abstract socket":   {func(c *Config) { c.Socket = "@s" }, "abstract"},
		"no port":              {func(c *Config) { c.KeyService = "localhost" }, `"localhost": must be host:port`},
		"a port by its name":   {func(c *Config) { c.KeyService = "localhost:https" }, "numeric port"},
		"a privileged port":    {func(c *Config) { c.LoopbackPort = 1023 }, "loopback port 1023: must be 1024 to 65535, or 0 for none"},
		"a port too high":      {func(c *Config) { c.LoopbackPort = 65536 }, "loopback port 65536"},
		"a negative port":      {func(c *Config) { c.LoopbackPort = -1 }, "loopback port -1"},
		"no host":              {func(c *Config) { c.KeyService = ":8443" }, "must be host:port"},
		"no roots":             {func(c *Config) { c.Roots = nil }, "at least one certificate in PEM"},
		"roots that are none":  {func(c *Config) { c.Roots = []byte("PEM") }, "at least one certificate in PEM"},
		"no directory to bind": {func(c *Config) { c.Socket = "/no/such/directory/s" }, "its directory must exist"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, "orders")
			test.change(&p.config)
			err := Run(t.Context(), p.config)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// ecdsaKeyPair returns a private key as the key service makes it, and its public key.
func ecdsaKeyPair(t *testing.T) (private, public []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err = x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err = x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return private, public
}

// A key pair bound to an aad, in a Secret whose public key somebody has replaced.
func TestRunServesAKeyPair(t *testing.T) {
	private, public := ecdsaKeyPair(t)
	_, theirs := ecdsaKeyPair(t)
	aad := []byte{0, '\n', 0xff}
	p := newPod(t, "signing")
	blob := p.service.SealWith(t, "signing", 1, private, envelope.AssociatedData{Raw: aad})
	p.mount.Put(t, "signing", map[string][]byte{"ciphertextBlob": blob, "aad": aad, "publicKey": theirs})
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}

	var got struct {
		KeyPairSpec, EncryptionContext            string
		Plaintext, PublicKey, CiphertextBlob, AAD []byte
	}
	response, body := roundTrip(t, p.config.Socket, get("/v1/data-keys/signing"))
	if err := json.Unmarshal(body, &got); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("got %s, %v", response.Status, err)
	}
	if got.KeyPairSpec != "ECC_NIST_P256" || !bytes.Equal(got.PublicKey, public) {
		t.Errorf("got %s and the public key %x, want ECC_NIST_P256 and %x", got.KeyPairSpec, got.PublicKey, public)
	}
	if !bytes.Equal(got.Plaintext, private) || !bytes.Equal(got.CiphertextBlob, blob) || !bytes.Equal(got.AAD, aad) {
		t.Error("the private key, the blob or the aad is another one")
	}
	if status, raw := p.key(t, "signing"); status != http.StatusOK || !bytes.Equal(raw, private) {
		t.Errorf("as bytes: got %d, and not the private key", status)
	}
	_, list := roundTrip(t, p.config.Socket, get("/v1/data-keys"))
	if !strings.Contains(string(list), `"algorithm":"AES_GCM","keyPairSpec":"ECC_NIST_P256",`) {
		t.Errorf("the list does not say what it is: %s", list)
	}
	checkHides(t, "the list", string(list), private)
	checkHides(t, "the log", p.logs.String(), private)
}
