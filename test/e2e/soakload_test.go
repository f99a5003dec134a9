//go:build e2e && measured

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	awstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	"golang.org/x/sys/unix"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/client"
	"github.com/datakeys/datakeys/internal/envelope"
)

// load is who uses the sidecars of a soak. It checks every answer: a data key is the same in all pods and at all times, what was encrypted
// opens, however old it is, and streams do not end.
type load struct {
	began    time.Time
	say      func(string, ...any)
	requests atomic.Int64
	failures atomic.Int64

	mu       sync.Mutex
	users    []*podUser
	kinds    map[string]*tally
	dataKeys map[uint32][sha256.Size]byte // of the data key orders, by generation

	messages kept[message] // of the native API
	blobs    kept[message] // of the door of AWS
}

// tally is what came of one kind of request.
type tally struct {
	asked, failed int64
	slowest       time.Duration
}

// message is something that was encrypted and must open again.
type message struct {
	generation            uint32 // of a data key, 0 for a blob
	ciphertext, plaintext []byte
}

// kept are some of what was encrypted, from the beginning on.
type kept[T any] struct {
	mu   sync.Mutex
	last time.Time
	all  []T
}

// offer keeps one each few seconds.
func (k *kept[T]) offer(one T) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.last) > 5*time.Second {
		k.last, k.all = time.Now(), append(k.all, one)
	}
}

func (k *kept[T]) snapshot() []T {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clip(k.all) // to which nobody else appends in place
}

// failed notes what should not have happened, and says it: errors hold no key, for what they quote is what a sidecar says of them.
func (l *load) failed(kind string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tally(kind).failed++
	if n := l.failures.Add(1); n <= 50 {
		l.say("after %v: %s: %v", time.Since(l.began).Round(time.Second), kind, err)
	}
}

func (l *load) tally(kind string) *tally {
	if l.kinds[kind] == nil {
		l.kinds[kind] = &tally{}
	}
	return l.kinds[kind]
}

// patient is how long a request may take.
const patient = 10 * time.Second

// every asks at a steady pace until the context ends. What is late is made up for, as far as that was in the last second.
func (l *load) every(ctx context.Context, pace time.Duration, kind string, ask func(context.Context) error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next := time.Now(); ; timer.Reset(time.Until(next)) {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		l.once(ctx, kind, ask)
		if next = next.Add(pace); time.Since(next) > time.Second {
			next = time.Now()
		}
	}
}

// once asks, and lets the request end even if the context does.
func (l *load) once(ctx context.Context, kind string, ask func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patient)
	defer cancel()
	asked := time.Now()
	err := ask(ctx)
	took := time.Since(asked)
	l.requests.Add(1)
	l.mu.Lock()
	t := l.tally(kind)
	t.asked++
	t.slowest = max(t.slowest, took)
	l.mu.Unlock()
	if err != nil {
		l.failed(kind, err)
	}
}

// isDataKey says whether a plaintext is that generation of the data key, as all have seen it until now.
func (l *load) isDataKey(generation uint32, plaintext []byte) error {
	sum := sha256.Sum256(plaintext)
	l.mu.Lock()
	defer l.mu.Unlock()
	if known, ok := l.dataKeys[generation]; !ok {
		l.dataKeys[generation] = sum
	} else if known != sum {
		return fmt.Errorf("generation %d is another data key than before", generation)
	}
	return nil
}

// podUser uses the sidecar of one pod.
type podUser struct {
	*load
	pod      string
	socket   string
	client   *client.Client
	http     *http.Client  // on the socket, with connections that are kept
	newest   atomic.Uint32 // generation that this sidecar has issued
	answered atomic.Int64
	working  sync.WaitGroup
	idle     []*http.Client // whose connections are to be closed in the end
}

// onLoopback dials an address of the pod's own network: from a thread that goes there, and ends with the goroutine that is locked to it.
func onLoopback(process int, address string) dial {
	return func(ctx context.Context, _, _ string) (conn net.Conn, err error) {
		dialed := make(chan struct{})
		go func() {
			defer close(dialed)
			runtime.LockOSThread()
			var network *os.File
			if network, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", process)); err != nil {
				return
			}
			defer network.Close()
			if err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err == nil {
				conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			}
		}()
		<-dialed
		return conn, err
	}
}

func httpClient(d dial, kept bool) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: d, DisableKeepAlives: !kept, DisableCompression: true}}
}

func (l *load) user(t *testing.T, pod string, process int) *podUser {
	t.Helper()
	u := &podUser{load: l, pod: pod, socket: fmt.Sprintf("/proc/%d/root%s", process, v1alpha1.SocketPath)}
	u.http = httpClient(onSocket(u.socket), true)
	var err error
	if u.client, err = client.New(client.Options{Socket: u.socket}); err != nil {
		t.Fatal(err)
	}
	u.idle = []*http.Client{u.http}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users = append(l.users, u)
	return u
}

// end waits until a user, whose context has ended, has its last answers, and closes its connections.
func (u *podUser) end() {
	u.working.Wait()
	u.client.Close()
	for _, c := range u.idle {
		c.CloseIdleConnections()
	}
}

// every is the load's, in the background, with what this user was answered counted.
func (u *podUser) every(ctx context.Context, pace time.Duration, kind string, ask func(context.Context) error) {
	where, _, _ := strings.Cut(u.pod, "-") // those that pass are counted together
	u.working.Go(func() { u.load.every(ctx, pace, kind+" at "+where, u.counted(ask)) })
}

func (u *podUser) counted(ask func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := ask(ctx)
		if err == nil {
			u.answered.Add(1)
		}
		return err
	}
}

// saw notes a generation that this sidecar issues.
func (u *podUser) saw(generation uint32) {
	for was := u.newest.Load(); was < generation && !u.newest.CompareAndSwap(was, generation); was = u.newest.Load() {
	}
}

// native uses the native API, with a get each pace and all else at its own.
func (u *podUser) native(ctx context.Context, t *testing.T, pace time.Duration) {
	t.Helper()
	aead, err := u.client.AEAD(ctx, "orders")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(aead.Close)
	first, err := u.client.DataKey(ctx, "orders")
	if err := u.checked(first, err, 0); err != nil {
		t.Fatal(err)
	}
	u.every(ctx, 2*pace, "get as JSON", func(ctx context.Context) error {
		k, err := u.client.DataKey(ctx, "orders")
		return u.checked(k, err, 0)
	})
	u.every(ctx, 2*pace, "get raw", func(ctx context.Context) error { return u.raw(ctx, u.http) })
	u.every(ctx, 500*time.Millisecond, "get on a connection of its own", func(ctx context.Context) error {
		return u.raw(ctx, httpClient(onSocket(u.socket), false))
	})
	u.every(ctx, 200*time.Millisecond, "get a generation", func(ctx context.Context) error {
		generation := 1 + mathrand.Uint32N(u.newest.Load())
		k, err := u.client.Generation(ctx, "orders", generation)
		return u.checked(k, err, generation)
	})
	u.every(ctx, time.Second, "list", u.list)
	u.every(ctx, 5*time.Second, "metrics", u.metrics)
	u.every(ctx, 100*time.Millisecond, "encrypt and decrypt 1 KiB", func(ctx context.Context) error {
		return u.roundTrip(ctx, u.client.Encrypt, u.client.Decrypt)
	})
	u.every(ctx, 200*time.Millisecond, "AEAD, and decrypt by the sidecar", func(ctx context.Context) error {
		return u.roundTrip(ctx, func(ctx context.Context, _ string, plaintext, associated []byte) ([]byte, error) {
			return aead.Seal(ctx, plaintext, associated)
		}, u.client.Decrypt)
	})
	u.every(ctx, 200*time.Millisecond, "decrypt what is older", func(ctx context.Context) error {
		all := u.messages.snapshot()
		if len(all) == 0 {
			return nil
		}
		return u.opens(ctx, all[mathrand.IntN(len(all))])
	})
	u.working.Go(func() { u.watch(ctx) })
	u.working.Go(func() { u.stream(ctx) })
}

// checked holds a data key against what is known of its generation.
func (u *podUser) checked(k *client.DataKey, err error, generation uint32) error {
	if err != nil {
		return err
	}
	defer k.Destroy()
	if generation != 0 && k.Generation != generation || k.Generation < 1 {
		return fmt.Errorf("got generation %d", k.Generation)
	}
	u.saw(k.Generation)
	return k.Plaintext.Use(func(plaintext []byte) error { return u.isDataKey(k.Generation, plaintext) })
}

// raw gets a generation as bytes.
func (u *podUser) raw(ctx context.Context, c *http.Client) error {
	generation := u.newest.Load()
	body, err := u.get(ctx, c, fmt.Sprintf("/v1/data-keys/orders?generation=%d", generation), "application/octet-stream")
	if err != nil {
		return err
	}
	return u.isDataKey(generation, body)
}

func (u *podUser) get(ctx context.Context, c *http.Client, path, accept string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	answer, err := c.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return body, err
}

// list has every generation that was seen, each of them issued.
func (u *podUser) list(ctx context.Context) error {
	newest := u.newest.Load()
	body, err := u.get(ctx, u.http, "/v1/data-keys", "application/json")
	if err != nil {
		return err
	}
	var list struct {
		DataKeys []struct {
			Name, State string
			Generations []struct{ State string }
		}
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	for _, k := range list.DataKeys {
		issued := 0
		for _, g := range k.Generations {
			if g.State == "Issued" {
				issued++
			}
		}
		if k.State != "Issued" || k.Name == "orders" && issued < int(newest) {
			return fmt.Errorf("data key %s is %s, with %d of %d generations issued", k.Name, k.State, issued, newest)
		}
	}
	if len(list.DataKeys) != 2 {
		return fmt.Errorf("there are %d data keys", len(list.DataKeys))
	}
	return nil
}

// metrics count no failure of the sidecar's.
func (u *podUser) metrics(ctx context.Context) error {
	body, err := u.get(ctx, u.http, "/metrics", "text/plain")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		held := strings.Contains(line, `path="/readyz"`) // what holds a pod back until its data keys are there
		if !held && strings.Contains(line, `code="5xx"`) && !strings.HasSuffix(line, " 0\n") {
			return errors.New(strings.TrimSpace(line))
		}
	}
	return nil
}

type crypt = func(ctx context.Context, name string, given, associated []byte) ([]byte, error)

// roundTrip encrypts 1 KiB and decrypts it.
func (u *podUser) roundTrip(ctx context.Context, encrypt, decrypt crypt) error {
	plaintext := make([]byte, 1<<10)
	_, _ = rand.Read(plaintext)
	ciphertext, err := encrypt(ctx, "orders", plaintext, []byte("row 42"))
	if err != nil {
		return err
	}
	opened, err := decrypt(ctx, "orders", ciphertext, []byte("row 42"))
	if err == nil && !bytes.Equal(opened, plaintext) {
		err = errors.New("it opens to something else")
	}
	if err != nil {
		return err
	}
	parsed, err := envelope.ParseMessage(ciphertext)
	if err == nil {
		u.messages.offer(message{parsed.Generation, ciphertext, plaintext})
	}
	return err
}

// opens decrypts what any pod has encrypted, if its generation has come to this one.
func (u *podUser) opens(ctx context.Context, m message) error {
	if m.generation > u.newest.Load() {
		return nil
	}
	opened, err := u.client.Decrypt(ctx, "orders", m.ciphertext, []byte("row 42"))
	if err == nil && !bytes.Equal(opened, m.plaintext) {
		err = errors.New("it opens to something else")
	}
	return err
}

// watch follows the data key with the Go client. It is never revoked, and generations only grow.
func (u *podUser) watch(ctx context.Context) {
	last := uint32(0)
	for event, err := range u.client.Watch(ctx, "orders") {
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			u.failed("watch at "+u.pod, err)
		case event.Kind != client.EventGeneration || event.Generation < last:
			u.failed("watch at "+u.pod, fmt.Errorf("got %s, generation %d after %d: %s", event.Kind, event.Generation, last, event.Message))
		default:
			last = event.Generation
			u.saw(last)
		}
	}
}

// stream reads events on one connection that is open all the time.
func (u *podUser) stream(ctx context.Context) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/v1/data-keys/orders/events", http.NoBody)
	if err == nil {
		var answer *http.Response
		if answer, err = u.http.Do(request); err == nil {
			_, err = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
		}
	}
	if ctx.Err() == nil {
		u.failed("stream at "+u.pod, fmt.Errorf("it has ended: %v", err))
	}
}

// aws uses the door of AWS KMS with the SDK.
func (u *podUser) aws(ctx context.Context, pace time.Duration, where string, d dial, kept bool) {
	c := httpClient(d, kept)
	u.idle = append(u.idle, c)
	service := awsBy(c, endpoint)
	pairs := map[string]string{"tenant": "a"}
	opens := func(ctx context.Context, blob, plaintext []byte) error {
		opened, err := service.Decrypt(ctx, &awskms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs})
		if err == nil && !bytes.Equal(opened.Plaintext, plaintext) {
			err = errors.New("it opens to something else")
		}
		return err
	}
	u.every(ctx, pace, "AWS GenerateDataKey and Decrypt "+where, func(ctx context.Context) error {
		made, err := service.GenerateDataKey(ctx, &awskms.GenerateDataKeyInput{
			KeyId: aws.String("orders"), KeySpec: awstypes.DataKeySpecAes256, EncryptionContext: pairs,
		})
		if err == nil {
			err = opens(ctx, made.CiphertextBlob, made.Plaintext)
		}
		if err == nil {
			u.blobs.offer(message{ciphertext: made.CiphertextBlob, plaintext: made.Plaintext})
		}
		return err
	})
	u.every(ctx, pace, "AWS Encrypt and Decrypt 1 KiB "+where, func(ctx context.Context) error {
		plaintext := make([]byte, 1<<10)
		_, _ = rand.Read(plaintext)
		made, err := service.Encrypt(ctx, &awskms.EncryptInput{KeyId: aws.String("orders"), Plaintext: plaintext, EncryptionContext: pairs})
		if err == nil {
			err = opens(ctx, made.CiphertextBlob, plaintext)
		}
		return err
	})
	u.every(ctx, pace, "AWS Decrypt what is older "+where, func(ctx context.Context) error {
		all := u.blobs.snapshot()
		if len(all) == 0 {
			return nil
		}
		m := all[mathrand.IntN(len(all))]
		return opens(ctx, m.ciphertext, m.plaintext)
	})
}

// alibaba uses the door of Alibaba Cloud KMS with its SDK, which runs in the network of the pod until the context ends.
func (u *podUser) alibaba(ctx context.Context, t *testing.T, pace time.Duration, program, keyID string, process int) {
	t.Helper()
	command := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", process), "--", program, "-endpoint", strings.TrimPrefix(endpoint, "http://"))
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	type fields = map[string]any
	asked, answers := json.NewEncoder(in), json.NewDecoder(out)
	call := func(operation string, request fields) (fields, error) {
		if err := asked.Encode(fields{"operation": operation, "request": request}); err != nil {
			return nil, err
		}
		var answer struct{ Response, Error fields }
		if err := answers.Decode(&answer); err != nil {
			return nil, err
		}
		if answer.Error != nil {
			return nil, fmt.Errorf("%s: %v", operation, answer.Error)
		}
		return answer.Response, nil
	}
	aad := base64.StdEncoding.EncodeToString([]byte("tenant a"))
	var older []fields
	steps := []func() error{
		func() error {
			made, err := call("GenerateDataKey", fields{"KeyId": keyID, "NumberOfBytes": 32, "Aad": aad})
			if err != nil {
				return err
			}
			opened, err := call("Decrypt", fields{"KeyId": keyID, "CiphertextBlob": made["CiphertextBlob"], "Iv": made["Iv"], "Aad": aad})
			return same(made["Plaintext"], opened["Plaintext"], err)
		},
		func() error {
			made, err := call("AdvanceGenerateDataKey", fields{"KeyId": keyID, "NumberOfBytes": 32, "Aad": aad})
			if err != nil {
				return err
			}
			if len(older) < 4000 {
				older = append(older, made)
			}
			opened, err := call("AdvanceDecrypt", fields{"CiphertextBlob": made["CiphertextBlob"], "Aad": aad})
			return same(made["Plaintext"], opened["Plaintext"], err)
		},
		func() error {
			plaintext := make([]byte, 1<<10)
			_, _ = rand.Read(plaintext)
			text := base64.StdEncoding.EncodeToString(plaintext)
			made, err := call("AdvanceEncrypt", fields{"KeyId": keyID, "Plaintext": text, "Aad": aad})
			if err != nil {
				return err
			}
			opened, err := call("AdvanceDecrypt", fields{"CiphertextBlob": made["CiphertextBlob"], "Aad": aad})
			return same(text, opened["Plaintext"], err)
		},
		func() error {
			if len(older) == 0 {
				return errors.New("there is nothing older")
			}
			m := older[mathrand.IntN(len(older))]
			opened, err := call("AdvanceDecrypt", fields{"CiphertextBlob": m["CiphertextBlob"], "Aad": aad})
			return same(m["Plaintext"], opened["Plaintext"], err)
		},
	}
	next := 0
	u.working.Go(func() {
		u.load.every(ctx, pace, "Alibaba's SDK at "+u.pod, u.counted(func(context.Context) error {
			step := steps[next%len(steps)]
			next++
			return step()
		}))
		_ = in.Close()
		if err := command.Wait(); err != nil {
			u.failed("Alibaba's SDK at "+u.pod, err)
		}
	})
}

func same(want, got any, err error) error {
	if err == nil && (want == nil || want != got) {
		err = errors.New("it opens to something else")
	}
	return err
}
