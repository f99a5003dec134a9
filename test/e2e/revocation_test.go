//go:build e2e && measured

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
)

// What design and documents promise.
const (
	revokedWithin = 30 * time.Second
	tokenWithin   = 2 * time.Minute
)

// TestRevocation takes away what pods that run side by side may do, and measures for how long each of them can still do it.
func TestRevocation(t *testing.T) {
	var f figures
	defer func() { f.log(t) }()
	namespace := tenant(t, "restricted", "orders")
	pods, stop := startPolled(t, namespace, "pod", sideBySide, nil, 100*time.Millisecond)
	doors, stopDoors := pollDoors(t, namespace, pods)
	pass(t, 30*time.Second) // renewals of pods that started one after the other get out of step

	binding := func() client.Object { return permission(namespace, "app", "orders")[1] }
	f.takeAway(t, pods, doors, "role", "AccessDenied", "AccessDeniedException",
		func() {
			if err := kube.client.Delete(t.Context(), binding()); err != nil {
				t.Fatal(err)
			}
		},
		func() { kube.create(t, binding()) })
	f.takeAway(t, pods, doors, "key", "MasterKeyState", "DisabledException",
		func() { mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"state":"Disabled"}}`) },
		func() { mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"state":"Enabled"}}`) })
	wantEvents(t, pods, "generation", "revoked AccessDenied", "restored", "revoked MasterKeyState", "restored")

	stopDoors()
	stop()
	f.deletedPods(t, namespace, pods)
	f.stuckPods(t, namespace)
}

// pollDoors has the AWS SDK open the blob of the pods' data key, over the front door of each sidecar: each time, the key service opens it.
func pollDoors(t *testing.T, namespace string, pods []*polled) (doors []*answers, stop func()) {
	t.Helper()
	blob, pairs := blobOf(t, namespace)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, p := range pods {
		door, service := &answers{}, awsOn(p.socket)
		doors = append(doors, door)
		running.Go(func() {
			door.poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
				opened, err := service.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs})
				if err == nil {
					clear(opened.Plaintext)
				}
				return err
			})
		})
	}
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return doors, stop
}

// blobOf returns the blob of the data key orders and its encryption context.
func blobOf(t *testing.T, namespace string) ([]byte, map[string]string) {
	t.Helper()
	request := waitRequestReady(t, namespace, "orders")
	return request.Status.Generations[0].CiphertextBlob, request.Spec.Context()
}

// takeAway takes a role or a key away from all pods at once, and gives it back.
func (f *figures) takeAway(t *testing.T, pods []*polled, doors []*answers, what, reason, exception string, take, giveBack func()) {
	t.Helper()
	waitServed(t, pods, doors)
	take()
	taken := time.Now()
	pass(t, revokedWithin+15*time.Second) // what came back later would be seen
	var keys, decrypts []time.Duration
	for i, p := range pods {
		keys = append(keys, after(taken, p.dataKey.ended(t, p.pod.Name, reason)))
		decrypts = append(decrypts, after(taken, doors[i].ended(t, p.pod.Name+", front door", exception)))
	}
	f.add(t, what+" taken: last data key from the sidecar", keys, revokedWithin)
	f.add(t, what+" taken: last Decrypt at the front door", decrypts, revokedWithin)

	giveBack()
	returned := time.Now()
	waitServed(t, pods, doors)
	keys, decrypts = nil, nil
	for i, p := range pods {
		keys = append(keys, after(returned, p.dataKey.begun()))
		decrypts = append(decrypts, after(returned, doors[i].begun()))
	}
	f.add(t, what+" given back: first data key from the sidecar", keys, 0)
	f.add(t, what+" given back: first Decrypt at the front door", decrypts, 0)
}

// waitServed waits until all pods have their data key, at both doors.
func waitServed(t *testing.T, pods []*polled, doors []*answers) {
	t.Helper()
	for i, p := range pods {
		kube.poll(t, p.pod.Name+" has its data key, at both doors", func() bool {
			return !p.dataKey.begun().IsZero() && !doors[i].begun().IsZero()
		})
	}
}

// after is how long after the one the other was, 0 if it was before.
func after(one, other time.Time) time.Duration { return max(0, other.Sub(one)) }

// deletedPods deletes the pods while their tokens, as the kubelet gave them to the sidecars, are used from elsewhere.
func (f *figures) deletedPods(t *testing.T, namespace string, pods []*polled) {
	t.Helper()
	bearers := make([]bearer, len(pods))
	for i, p := range pods {
		token, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/var/run/datakeys.io/token/token", processOf(t, namespace, p.pod.Name, v1alpha1.SidecarName)))
		if err != nil {
			t.Fatal(err)
		}
		bearers[i] = bearer(token)
	}
	tokens, stop := pollTokens(t, namespace, pods[0].pod, bearers)
	defer stop()

	gone := watchGone(t, namespace)
	deleted := map[string]time.Time{}
	for _, p := range pods {
		if err := kube.client.Delete(t.Context(), p.pod); err != nil {
			t.Fatal(err)
		}
		deleted[p.pod.Name] = time.Now()
	}
	var sinceGone, sinceDeleted []time.Duration
	waitRefused(t, tokens)
	for i, p := range pods {
		last := tokens[i].ended(t, "the token of "+p.pod.Name, codes.Unauthenticated.String())
		at := gone(p.pod.Name)
		if at.IsZero() {
			t.Fatalf("pod %s is still there", p.pod.Name)
		}
		sinceGone = append(sinceGone, after(at, last))
		sinceDeleted = append(sinceDeleted, after(deleted[p.pod.Name], last))
	}
	f.add(t, "token of a pod that is deleted: last Decrypt, after the pod is gone", sinceGone, tokenWithin)
	f.add(t, "the same, after the call that deletes it", sinceDeleted, tokenWithin)
}

// stuckPods deletes pods that stay nevertheless, with no grace period. None of them runs: no node would have it.
func (f *figures) stuckPods(t *testing.T, namespace string) {
	t.Helper()
	var pods []*corev1.Pod
	var bearers []bearer
	t.Cleanup(func() {
		for _, p := range pods {
			patch := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))
			if err := client.IgnoreNotFound(kube.client.Patch(context.WithoutCancel(t.Context()), p, patch)); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range sideBySide {
		p := pod(namespace, fmt.Sprintf("stuck-%02d", i))
		p.Labels, p.Finalizers = nil, []string{"e2e.datakeys.io/stuck"}
		p.Spec.NodeSelector = map[string]string{"e2e.datakeys.io/none": "true"}
		kube.create(t, p)
		pods = append(pods, p)
		review, err := kube.set.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), p.Spec.ServiceAccountName, &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{
				Audiences:      []string{v1alpha1.TokenAudience},
				BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		bearers = append(bearers, bearer(review.Status.Token))
	}
	injected := pod(namespace, "injected", "orders") // for how the key service is called
	kube.create(t, injected)
	tokens, stop := pollTokens(t, namespace, injected, bearers)
	defer stop()

	deleted := make([]time.Time, len(pods))
	for i, p := range pods {
		if err := kube.client.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		deleted[i] = time.Now()
	}
	var took []time.Duration
	waitRefused(t, tokens)
	for i, p := range pods {
		took = append(took, after(deleted[i], tokens[i].ended(t, "the token of "+p.Name, codes.Unauthenticated.String())))
	}
	f.add(t, "token of a pod that is deleted and stays: last Decrypt, after the call that deletes it", took, tokenWithin)
}

// waitRefused waits until nothing is given any more, and 30 s beyond that.
func waitRefused(t *testing.T, all []*answers) {
	t.Helper()
	kube.poll(t, "all tokens are refused", func() bool {
		for _, a := range all {
			if !a.begun().IsZero() {
				return false
			}
		}
		return true
	})
	pass(t, 30*time.Second)
}

// watchGone notes when pods are gone from now on.
func watchGone(t *testing.T, namespace string) (gone func(name string) time.Time) {
	t.Helper()
	w, err := kube.client.Watch(t.Context(), &corev1.PodList{}, client.InNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	var seen sync.Map
	go func() {
		for event := range w.ResultChan() {
			if p, ok := event.Object.(*corev1.Pod); ok && event.Type == watch.Deleted {
				seen.Store(p.Name, time.Now())
			}
		}
	}()
	return func(name string) time.Time {
		at, _ := seen.Load(name)
		then, _ := at.(time.Time)
		return then
	}
}

// bearer is the token of a pod.
type bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (bearer) RequireTransportSecurity() bool { return true }

// pollTokens has the key service open the pods' data key for whoever has each of these tokens, over a connection of its own, as the sidecar
// in that pod would, and returns when that has succeeded with each.
func pollTokens(t *testing.T, namespace string, injected *corev1.Pod, bearers []bearer) (all []*answers, stop func()) {
	t.Helper()
	sidecar := injected.Spec.InitContainers[0]
	roots, host := x509.NewCertPool(), ""
	for _, arg := range sidecar.Args {
		if address, found := strings.CutPrefix(arg, "--key-service="); found {
			host, _, _ = net.SplitHostPort(address)
		}
	}
	if !roots.AppendCertsFromPEM([]byte(sidecar.Env[0].Value)) || host == "" {
		t.Fatalf("the sidecar of pod %s has no key service, or no certificates", injected.Name)
	}
	var service corev1.Service
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: systemNamespace, Name: "datakeys-key-service"}, &service); err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(service.Spec.ClusterIP, fmt.Sprint(service.Spec.Ports[0].Port))
	elsewhere := pod(namespace, "elsewhere-"+injected.Name)
	elsewhere.Labels = nil
	kube.create(t, elsewhere)
	kube.waitPodReady(t, namespace, elsewhere.Name)
	process := processOf(t, namespace, elsewhere.Name, "app")

	blob, pairs := blobOf(t, namespace)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	for _, b := range bearers {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithPerRPCCredentials(b),
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: host, MinVersion: tls.VersionTLS13})),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dialIn(ctx, process, address) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		a, keys := &answers{}, kmsv1.NewKeyServiceClient(conn)
		all = append(all, a)
		running.Go(func() {
			a.poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
				opened, err := keys.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: pairs})
				clear(opened.GetPlaintext())
				return err
			})
		})
	}
	for _, a := range all {
		kube.poll(t, "each token opens the data key", func() bool { return !a.begun().IsZero() })
	}
	pass(t, 15*time.Second) // all reviews come from caches
	return all, stop
}

// dialIn connects from the network of a process: a socket belongs to the one in which it is made.
func dialIn(ctx context.Context, process int, address string) (net.Conn, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and leaves that network
		network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", process))
		if err == nil {
			err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET)
			_ = network.Close()
		}
		if err != nil {
			done <- dialled{nil, err}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		done <- dialled{conn, err}
	}()
	d := <-done
	return d.conn, d.err
}
