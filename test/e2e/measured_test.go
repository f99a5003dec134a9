//go:build e2e && measured

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/client"
)

// What has the build tag measured takes longer than a change can wait for. `make measured` and `make soak` run it.

// sideBySide is how many pods are measured at once.
const sideBySide = 50

// polled is a pod whose sidecar is asked for the data key orders all the time, as an application with the Go client would.
type polled struct {
	pod     *corev1.Pod
	socket  string
	dataKey answers

	mu     sync.Mutex
	events []string // what the sidecar told meanwhile
}

// startPolled starts pods side by side, with those annotations, and asks each of them at that pace until the test ends, or stop is
// called.
func startPolled(t *testing.T, namespace, prefix string, n int, annotations map[string]string, pace time.Duration) (pods []*polled, stop func()) {
	t.Helper()
	for i := range n {
		p := pod(namespace, fmt.Sprintf("%s-%02d", prefix, i), "orders")
		maps.Copy(p.Annotations, annotations)
		kube.create(t, p)
		pods = append(pods, &polled{pod: p})
	}
	for _, p := range pods {
		p.pod = kube.waitPodReady(t, namespace, p.pod.Name)
		p.socket = fmt.Sprintf("/proc/%d/root%s", processOf(t, namespace, p.pod.Name, "app"), v1alpha1.SocketPath)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, p := range pods {
		application, err := client.New(client.Options{Socket: p.socket})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() { p.watch(ctx, application) })
		running.Go(func() {
			p.dataKey.poll(ctx, pace, func(ctx context.Context) error {
				key, err := application.DataKey(ctx, "orders")
				if err == nil {
					key.Destroy()
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
	return pods, stop
}

// watch notes the events until the context ends.
func (p *polled) watch(ctx context.Context, application *client.Client) {
	for event, err := range application.Watch(ctx, "orders") {
		if ctx.Err() != nil {
			return
		}
		told := string(event.Kind)
		switch {
		case err != nil:
			told = err.Error()
		case event.Reason != "":
			told += " " + event.Reason
		}
		p.mu.Lock()
		p.events = append(p.events, told)
		p.mu.Unlock()
	}
}

func wantEvents(t *testing.T, pods []*polled, want ...string) {
	t.Helper()
	for _, p := range pods {
		p.mu.Lock()
		if !slices.Equal(p.events, want) {
			t.Errorf("pod %s was told %q, want %q", p.pod.Name, p.events, want)
		}
		p.mu.Unlock()
	}
}

// answers are what came of asking the same thing again and again, by one goroutine.
type answers struct {
	mu     sync.Mutex
	spells []spell
	gap    time.Duration // the longest time between two answers
}

// spell is a time in which every answer was the same.
type spell struct {
	reason      string    // of the refusal; empty where what was asked for was given
	detail      string    // of the first one
	first, last time.Time // when the first and the last such answer came
}

const given = ""

func (s spell) String() string {
	return fmt.Sprintf("%s from %s to %s %s", cmp.Or(s.reason, "given"), s.first.Format(time.TimeOnly), s.last.Format(time.TimeOnly), s.detail)
}

// poll asks at that pace until the context ends. No answer within 5 s is one, too.
func (a *answers) poll(ctx context.Context, pace time.Duration, ask func(context.Context) error) {
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := ask(asking)
		cancel()
		if ctx.Err() != nil {
			return
		}
		a.note(err)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (a *answers) note(err error) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.spells); n > 0 {
		last := &a.spells[n-1]
		a.gap = max(a.gap, now.Sub(last.last))
		if last.reason == reasonOf(err) {
			last.last = now
			return
		}
	}
	s := spell{reason: reasonOf(err), first: now, last: now}
	if err != nil {
		s.detail = err.Error()
	}
	a.spells = append(a.spells, s)
}

// reasonOf is the name of an error, in the words of what answers.
func reasonOf(err error) string {
	if err == nil {
		return given
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Reason
	}
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return status.Code(err).String()
}

// ended returns when the last answer came that gave what was asked for. It was refused from then on, for the wanted reason.
func (a *answers) ended(t *testing.T, who, wanted string) (last time.Time) {
	t.Helper()
	var refused bool
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.spells {
		if s.reason == given {
			last, refused = s.last, false
		}
		refused = refused || s.reason == wanted
	}
	if !refused {
		t.Errorf("%s: it is not refused for %s in the end, but was answered %v", who, wanted, a.spells)
	}
	return last
}

// begun returns when the answers began that give what is asked for, up to now without a break; the zero time if they do not.
func (a *answers) begun() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.spells); n > 0 && a.spells[n-1].reason == given {
		return a.spells[n-1].first
	}
	return time.Time{}
}

// pass lets time pass.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}

// figures become a table of a document.
type figures []string

// add makes a row of what each pod took, and fails the test if that is beyond the bound. 0 is no bound.
func (f *figures) add(t *testing.T, what string, took []time.Duration, bound time.Duration) {
	t.Helper()
	sorted := slices.Sorted(slices.Values(took))
	if len(sorted) == 0 {
		t.Fatalf("%s: nothing was measured", what)
	}
	worst, said := sorted[len(sorted)-1], ""
	if bound > 0 {
		said = bound.String()
		if worst > bound {
			t.Errorf("%s: %v, want at most %v", what, worst, bound)
		}
	}
	row := fmt.Sprintf("| %s | %d |", what, len(sorted))
	for _, d := range []time.Duration{sorted[0], median(sorted), sorted[(len(sorted)*9+9)/10-1], worst} {
		row += fmt.Sprintf(" %.1f s |", d.Seconds())
	}
	*f = append(*f, row+" "+said+" |")
}

func (f *figures) log(t *testing.T) {
	t.Helper()
	t.Logf("measured:\n| | pods | least | median | 90 of 100 | worst | bound |\n|---|---|---|---|---|---|---|\n%s", strings.Join(*f, "\n"))
}
