//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// patience bounds every wait. It is no measurement: a step that works takes far less.
const patience = 4 * time.Minute

// cluster is the cluster under test.
type cluster struct {
	state  string // its folder, at the root of the checkout
	config *rest.Config
	client client.WithWatch
	set    kubernetes.Interface
}

func connect(state string) (*cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(root, state, "kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.QPS = -1 // the API server's priority and fairness is enough
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, err
	}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &cluster{state: state, config: config, client: c, set: set}, nil
}

// namespace makes a namespace that enforces the given Pod Security Standard and ends with the test.
func (c *cluster) namespace(t *testing.T, standard string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "e2e-",
		Labels:       map[string]string{"pod-security.kubernetes.io/enforce": standard},
	}}
	c.create(t, ns)
	t.Cleanup(func() {
		if t.Failed() {
			c.describe(t, ns.Name)
		}
		if err := c.deleteNamespace(context.Background(), ns.Name); err != nil {
			t.Errorf("delete the namespace: %v", err)
		}
	})
	c.waitFor(t, &corev1.ServiceAccountList{}, ns.Name, "ServiceAccount default", func(o client.Object) bool { return o.GetName() == "default" })
	return ns.Name
}

// deleteNamespace begins the deletion of a namespace with its MasterKeys, as a person would who means it: a policy refuses that
// until each MasterKey that has material is annotated.
func (c *cluster) deleteNamespace(ctx context.Context, name string) error {
	keys := &v1alpha1.MasterKeyList{}
	if err := c.client.List(ctx, keys, client.InNamespace(name)); err != nil {
		return err
	}
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"true"}}}`, v1alpha1.AnnotationAllowDeletion))
	for i := range keys.Items {
		if err := client.IgnoreNotFound(c.client.Patch(ctx, &keys.Items[i], patch)); err != nil {
			return err
		}
	}
	var refusal error
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
		if apierrors.IsForbidden(err) { // the policy sees the annotations a little later
			refusal = err
			return false, nil
		}
		return true, err
	})
	if wait.Interrupted(err) {
		return errors.Join(err, refusal)
	}
	return err
}

func (c *cluster) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := c.client.Create(t.Context(), o); err != nil {
			t.Fatalf("create %T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
		}
	}
}

// waitFor watches the namespace until an object is as wanted, and returns that object.
func (c *cluster) waitFor(t *testing.T, list client.ObjectList, namespace, what string, wanted func(client.Object) bool) client.Object {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		w, err := c.client.Watch(ctx, list, client.InNamespace(namespace)) // a watch without resourceVersion begins with what is there
		if err != nil {
			t.Fatalf("watch for %s: %v", what, err)
		}
		for event := range w.ResultChan() {
			o, ok := event.Object.(client.Object)
			if !ok {
				break // the watch has ended with a status: begin again
			}
			if event.Type != watch.Deleted && wanted(o) {
				w.Stop()
				return o
			}
		}
		w.Stop()
	}
	t.Fatalf("%s/%s: not seen within %v", namespace, what, patience)
	return nil
}

// poll asks again and again until something holds that no watch tells of.
func (*cluster) poll(t *testing.T, what string, holds func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true, func(context.Context) (bool, error) { return holds(), nil })
	if err != nil {
		t.Fatalf("%s: waited for in vain: %v", what, err)
	}
}

// waitGone watches until the object is gone.
func (c *cluster) waitGone(t *testing.T, list client.ObjectList, o client.Object) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		w, err := c.client.Watch(ctx, list, client.InNamespace(o.GetNamespace()), client.MatchingFields{"metadata.name": o.GetName()})
		if err != nil {
			t.Fatalf("watch %s: %v", o.GetName(), err)
		}
		err = c.client.Get(ctx, client.ObjectKeyFromObject(o), o.DeepCopyObject().(client.Object))
		if apierrors.IsNotFound(err) {
			w.Stop()
			return
		}
		for event := range w.ResultChan() {
			if event.Type == watch.Deleted {
				w.Stop()
				return
			}
		}
	}
	t.Fatalf("%s/%s: still there after %v", o.GetNamespace(), o.GetName(), patience)
}

func (c *cluster) waitPod(t *testing.T, namespace, name, what string, wanted func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	return c.waitFor(t, &corev1.PodList{}, namespace, "pod "+name+" "+what, func(o client.Object) bool {
		pod := o.(*corev1.Pod)
		return pod.Name == name && wanted(pod)
	}).(*corev1.Pod)
}

func (c *cluster) waitPodReady(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	return c.waitPod(t, namespace, name, "Ready", podReady)
}

func podReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waitEvent returns the first event on the object whose reason is among the wanted ones and whose note contains text.
func (c *cluster) waitEvent(t *testing.T, namespace, name, text string, reasons ...string) *eventsv1.Event {
	t.Helper()
	return c.waitFor(t, &eventsv1.EventList{}, namespace, fmt.Sprintf("event %v on %s with %q", reasons, name, text), func(o client.Object) bool {
		event := o.(*eventsv1.Event)
		for _, reason := range reasons {
			if event.Regarding.Name == name && event.Reason == reason && strings.Contains(event.Note, text) {
				return true
			}
		}
		return false
	}).(*eventsv1.Event)
}

// exec runs a command in a container and returns what it printed. Its output is in no log: it may be secret.
func (c *cluster) exec(ctx context.Context, namespace, pod, container string, command ...string) (stdout, stderr []byte, err error) {
	return c.feed(ctx, nil, namespace, pod, container, command...)
}

// feed is exec with a standard input, where that is not nil.
func (c *cluster) feed(ctx context.Context, stdin io.Reader, namespace, pod, container string, command ...string) (stdout, stderr []byte, err error) {
	options := &corev1.PodExecOptions{Container: container, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true}
	request := c.set.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(options, clientgoscheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.config, "GET", request.URL().String())
	if err != nil {
		return nil, nil, err
	}
	var out, errOut bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errOut})
	return out.Bytes(), errOut.Bytes(), err
}

func (c *cluster) logs(t *testing.T, namespace, pod, container string) string {
	t.Helper()
	stream, err := c.set.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container}).Stream(t.Context())
	if err != nil {
		t.Fatalf("logs of %s/%s: %v", pod, container, err)
	}
	defer stream.Close()
	b, err := io.ReadAll(stream)
	if err != nil {
		t.Fatalf("logs of %s/%s: %v", pod, container, err)
	}
	return string(b)
}

// spoken is what a container prints, line by line, from its start on.
type spoken struct {
	pod    string
	stream io.ReadCloser
	lines  *bufio.Scanner
}

func (c *cluster) listen(t *testing.T, namespace, pod, container string) *spoken {
	t.Helper()
	stream, err := c.set.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(t.Context())
	if err != nil {
		t.Fatalf("logs of %s/%s: %v", pod, container, err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	return &spoken{pod, stream, bufio.NewScanner(stream)}
}

// waitLine waits for the next line that is as wanted.
func (s *spoken) waitLine(t *testing.T, what string, wanted func(string) bool) string {
	t.Helper()
	timer := time.AfterFunc(patience, func() { _ = s.stream.Close() })
	defer timer.Stop()
	last := ""
	for s.lines.Scan() {
		if last = s.lines.Text(); wanted(last) {
			return last
		}
	}
	t.Fatalf("pod %s did not print %s within %v; the last that it printed is %q (%v)", s.pod, what, patience, last, s.lines.Err())
	return ""
}

// describe prints what a person would look at after a failure.
func (c *cluster) describe(t *testing.T, namespace string) {
	ctx := context.Background()
	pods := &corev1.PodList{}
	if err := c.client.List(ctx, pods, client.InNamespace(namespace)); err == nil {
		for i := range pods.Items {
			pod := &pods.Items[i]
			t.Logf("pod %s: %s", pod.Name, pod.Status.Phase)
			for _, s := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
				t.Logf("  container %s: ready=%v restarts=%d state=%+v", s.Name, s.Ready, s.RestartCount, s.State)
			}
		}
	}
	requests := &v1alpha1.DataKeyRequestList{}
	if err := c.client.List(ctx, requests, client.InNamespace(namespace)); err == nil {
		for i := range requests.Items {
			t.Logf("DataKeyRequest %s: %+v", requests.Items[i].Name, requests.Items[i].Status.Conditions)
		}
	}
	keys := &v1alpha1.MasterKeyList{}
	if err := c.client.List(ctx, keys, client.InNamespace(namespace)); err == nil {
		for i := range keys.Items {
			t.Logf("MasterKey %s: %+v", keys.Items[i].Name, keys.Items[i].Status.Conditions)
		}
	}
	events := &eventsv1.EventList{}
	if err := c.client.List(ctx, events, client.InNamespace(namespace)); err == nil {
		for i := range events.Items {
			e := &events.Items[i]
			t.Logf("event on %s %s: %s: %s", e.Regarding.Kind, e.Regarding.Name, e.Reason, e.Note)
		}
	}
}
