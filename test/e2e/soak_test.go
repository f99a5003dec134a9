//go:build e2e && measured

package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

var soakFor = flag.Duration("soak", time.Hour, "for how long TestSoak uses sidecars")

// What a soak is held to.
const (
	soakResident = 20_000_000 // bytes of a sidecar
	soakIdle     = 0.002      // of a processor, for a sidecar that nobody uses
	soakAnswers  = 1_000_000  // an hour, of one sidecar
)

// soak is a run.
type soak struct {
	*load
	namespace string
	ended     chan struct{}

	mu        sync.Mutex
	processes map[string]*process
	following sync.WaitGroup
	bad       map[string]int // lines of logs, by what they say
}

// process is a container whose process is sampled.
type process struct {
	pid     int
	rest    int          // descriptors of a sidecar before anybody uses it
	metrics *http.Client // of a manager, which may end
	ended   bool
	life    life
}

// TestSoak uses sidecars for an hour as applications do, in many ways at once, while master key and data key are rotated, managers are
// replaced and pods come and go. Nothing fails, no process grows, and a sidecar that nobody uses does next to nothing. `make soak` runs it.
func TestSoak(t *testing.T) {
	s := &soak{
		load:      &load{began: time.Now(), say: t.Logf, kinds: map[string]*tally{}, dataKeys: map[uint32][sha256.Size]byte{}},
		namespace: tenant(t, "restricted", "orders", "payments"), ended: make(chan struct{}),
		processes: map[string]*process{}, bad: map[string]int{},
	}
	keyID := s.permit(t)
	program := filepath.Join(t.TempDir(), "alibaba")
	if err := run(t.Context(), state, "go", "build", "-C", "test/alibaba/client", "-o", program, "."); err != nil {
		t.Fatal(err)
	}
	for _, m := range managers(t) {
		s.manager(t, m.Name)
	}

	ctx, end := context.WithCancel(t.Context())
	stop := sync.OnceFunc(func() {
		end()
		for _, u := range s.users {
			u.end()
		}
		close(s.ended)
		s.following.Wait()
	})
	t.Cleanup(stop)
	s.began = time.Now()
	s.start(t, "quiet", false)
	busy, _ := s.start(t, "busy", false)
	mixed, _ := s.start(t, "mixed", false)
	doors, application := s.start(t, "doors", true)
	users := []*podUser{busy, mixed, doors}
	busy.native(ctx, t, 2400*time.Microsecond) // a million and a half in an hour
	for _, u := range users[1:] {
		u.native(ctx, t, 50*time.Millisecond)
	}
	for _, u := range users {
		u.aws(ctx, 500*time.Millisecond, "on the socket", onSocket(u.socket), true)
	}
	loopback := onLoopback(application, strings.TrimPrefix(endpoint, "http://"))
	doors.aws(ctx, 500*time.Millisecond, "on the loopback port", loopback, true)
	doors.aws(ctx, 2*time.Second, "on connections of its own", loopback, false)
	doors.alibaba(ctx, t, 250*time.Millisecond, program, keyID, application)
	s.following.Go(s.sample)

	rotations := s.happen(t, users)
	for _, u := range users { // the kubelet brings what changed to running pods within about a minute and a half
		s.wait(t, fmt.Sprintf("generation %d at %s", rotations+1, u.pod), func() bool { return u.newest.Load() == uint32(rotations+1) })
	}
	lasted := time.Since(s.began)
	stop()
	s.atRest(t)
	s.report(t, lasted)

	for _, name := range []string{"quiet", "busy", "mixed", "doors"} {
		s.stillRuns(t, name)
	}
	s.judge(t, lasted)
	if got, want := float64(busy.answered.Load()), soakAnswers*lasted.Hours(); got < want {
		t.Errorf("the busy sidecar has answered %.0f requests, want %.0f in %v", got, want, lasted)
	}
	for generation, plaintext := range plaintextsOf(t, s.namespace, "orders") {
		if s.dataKeys[uint32(generation)] != sha256.Sum256(plaintext) {
			t.Errorf("generation %d was not what its blob opens to, or was never seen", generation)
		}
	}
	searchForLeaks(t)
}

// permit lets the ServiceAccount of the pods use the master key, and returns its key ID.
func (s *soak) permit(t *testing.T) string {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: s.namespace, Name: "uses-keys"}
	kube.create(t,
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.ResourceMasterKeys},
			Verbs: []string{v1alpha1.VerbGenerateDataKey, v1alpha1.VerbDecrypt, v1alpha1.VerbEncrypt},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: s.namespace, Name: "app"}},
		},
	)
	var key v1alpha1.MasterKey
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: "orders"}, &key); err != nil {
		t.Fatal(err)
	}
	return key.Status.KeyID
}

// start starts a pod whose sidecar is sampled, and returns who uses it, and the process of its application.
func (s *soak) start(t *testing.T, name string, loopback bool) (u *podUser, application int) {
	t.Helper()
	p := pod(s.namespace, name, "orders", "payments")
	if loopback {
		p.Annotations[v1alpha1.AnnotationLoopbackPort] = strconv.Itoa(loopbackPort)
	}
	kube.create(t, p)
	kube.waitPodReady(t, s.namespace, name)
	sidecar := &process{pid: processOf(t, s.namespace, name, v1alpha1.SidecarName)}
	rest, err := sampleOf(sidecar.pid)
	if err != nil {
		t.Fatal(err)
	}
	sidecar.rest = rest.descriptors
	s.add("sidecar of "+name, sidecar)
	application = processOf(t, s.namespace, name, "app")
	return s.user(t, name, application), application
}

// manager has a manager sampled, and its log read.
func (s *soak) manager(t *testing.T, name string) {
	t.Helper()
	pid := processOf(t, systemNamespace, name, "manager")
	if s.add("manager "+name, &process{pid: pid, metrics: httpClient(onLoopback(pid, "127.0.0.1:8080"), false)}) {
		s.following.Go(func() { s.follow(t.Context(), name) })
	}
}

func (s *soak) add(name string, p *process) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.processes[name] != nil {
		return false
	}
	s.processes[name] = p
	return true
}

// happen rotates, replaces and lets pods come and go until the time is over, says every minute how things are, and returns how often
// the data key was rotated.
func (s *soak) happen(t *testing.T, users []*podUser) (rotations int32) {
	t.Helper()
	restarts := []time.Duration{*soakFor / 12, *soakFor / 3} // so that the last managers live long enough to be judged
	passing := func() {}
	defer func() { passing() }()
	for minute := 1; time.Since(s.began) < *soakFor; minute++ {
		next := min(time.Duration(minute)*time.Minute, *soakFor)
		select {
		case <-time.After(time.Until(s.began.Add(next))):
		case <-t.Context().Done():
			t.Fatal(context.Cause(t.Context()))
		}
		s.progress(t, users, rotations)
		rotated := minute%2 == 0
		if rotated {
			rotations++
			requestRotation(t, &v1alpha1.MasterKey{}, s.namespace, "orders", fmt.Sprintf("version %d", rotations+1))
			requestRotation(t, &v1alpha1.DataKeyRequest{}, s.namespace, "orders", fmt.Sprintf("generation %d", rotations+1))
		}
		if len(restarts) > 0 && next >= restarts[0] { // in the middle of a rotation, now and then
			restarts = restarts[1:]
			s.replaceManagers(t)
		}
		if rotated {
			waitRotated(t, s.namespace, "orders", rotations+1, rotations+1)
		}
		if minute%3 == 0 {
			passing()
			passing = s.pass(t, fmt.Sprintf("passing-%d", minute))
		}
	}
	return rotations
}

// replaceManagers replaces the managers as `kubectl rollout restart` does.
func (s *soak) replaceManagers(t *testing.T) {
	t.Helper()
	old := managers(t)
	mergePatch(t, &appsv1.Deployment{}, systemNamespace, "datakeys-manager", fmt.Sprintf(
		`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339)))
	for i := range old {
		kube.waitGone(t, &corev1.PodList{}, &old[i])
	}
	for _, m := range managers(t) {
		kube.waitPodReady(t, systemNamespace, m.Name)
		s.manager(t, m.Name)
	}
	t.Logf("replaced the managers after %v", time.Since(s.began).Round(time.Second))
}

// pass starts a pod that opens all that was encrypted by then, and is used as others are until the returned function ends it.
func (s *soak) pass(t *testing.T, name string) (end func()) {
	t.Helper()
	messages := s.messages.snapshot()
	p := pod(s.namespace, name, "orders", "payments")
	kube.create(t, p)
	kube.waitPodReady(t, s.namespace, name)
	ctx, cancel := context.WithCancel(t.Context())
	u := s.user(t, name, processOf(t, s.namespace, name, "app"))
	u.native(ctx, t, 50*time.Millisecond)
	u.aws(ctx, time.Second, "on the socket", onSocket(u.socket), true)
	opened := map[uint32]int{}
	for _, m := range messages {
		if m.generation > u.newest.Load() {
			t.Errorf("%s has the generation %d, and there is a message of %d", name, u.newest.Load(), m.generation)
		}
		s.once(ctx, "decrypt all at a new pod", func(ctx context.Context) error { return u.opens(ctx, m) })
		opened[m.generation]++
	}
	t.Logf("%s opens %d messages of %d generations", name, len(messages), len(opened))
	return func() {
		t.Helper()
		cancel()
		u.end()
		s.stillRuns(t, name)
		if err := kube.client.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		kube.waitGone(t, &corev1.PodList{}, p)
	}
}

// stillRuns makes sure that no container of a pod was started again, and reads the log of its sidecar.
func (s *soak) stillRuns(t *testing.T, name string) {
	t.Helper()
	var p corev1.Pod
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, &p); err != nil {
		t.Fatal(err)
	}
	for _, status := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if status.RestartCount != 0 {
			t.Errorf("container %s of pod %s was started again: %+v", status.Name, name, status.LastTerminationState)
		}
	}
	for line := range strings.Lines(kube.logs(t, s.namespace, name, v1alpha1.SidecarName)) {
		s.read("sidecar of "+name, line)
	}
}

// atRest makes sure that sidecars that nobody uses any more have as many descriptors as before.
func (s *soak) atRest(t *testing.T) {
	t.Helper()
	for name, p := range s.processes {
		if p.metrics != nil || p.ended {
			continue // a manager, or told of already
		}
		last := 0
		s.wait(t, fmt.Sprintf("%s with %d descriptors", name, p.rest), func() bool {
			now, err := sampleOf(p.pid)
			last = now.descriptors
			return err == nil && last <= p.rest
		})
		t.Logf("%s has %d descriptors, and had %d before", name, last, p.rest)
	}
}

// wait waits until something is so.
func (s *soak) wait(t *testing.T, what string, so func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for start := time.Now(); !so(); <-ticker.C {
		if time.Since(start) > patience {
			t.Errorf("%s: not seen within %v", what, patience)
			return
		}
	}
}

// alarming are lines that no log should have. An audit record says what was decided.
var alarming = regexp.MustCompile(`(?i)"level":"(warn|error|dpanic|panic|fatal)"|^(panic|fatal error|runtime):|^{.*"decision":"[^"]*"`)

var said = regexp.MustCompile(`"(msg|reason|error|decision)":"([^"\\]|\\.)*"`)

// electing is what is said of the Lease where nothing is wrong. Where a manager is told to stop: by controller-runtime where it was the leader
// and gives its Lease back, by client-go where it was just looking at the Lease. And by client-go where there was no Lease, as after an
// install, and of two managers that make it at the same time one comes second: that is how the API server chooses the first leader, and the
// other stands by.
var electing = regexp.MustCompile(`^"msg":"error received after stop sequence was engaged" "error":"leader election lost"$|` +
	`^"msg":"Error retrieving lease lock" "error":".*: context canceled"$|` +
	`^"msg":"Error initially creating lease lock" "error":"leases\.coordination\.k8s\.io .* already exists"$`)

// read looks at a line of a log.
func (s *soak) read(who, line string) {
	if !alarming.MatchString(line) || strings.Contains(line, `"decision":"allowed"`) {
		return
	}
	what := strings.Join(said.FindAllString(line, -1), " ")
	if what == "" {
		what = strings.TrimSpace(line)
	}
	if electing.MatchString(what) {
		return
	}
	s.alarm(who + ": " + what)
}

func (s *soak) alarm(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad[what]++
}

// follow reads the log of a manager until it is gone, or the soak has ended.
func (s *soak) follow(ctx context.Context, name string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		<-s.ended
	}()
	options := &corev1.PodLogOptions{Container: "manager", Follow: true}
	for ctx.Err() == nil {
		stream, err := kube.set.CoreV1().Pods(systemNamespace).GetLogs(name, options).Stream(ctx)
		if apierrors.IsNotFound(err) {
			return
		}
		began := metav1.Now()
		if err == nil {
			lines := bufio.NewScanner(stream)
			for lines.Scan() {
				began = metav1.Now()
				s.read("manager", lines.Text())
			}
			_ = stream.Close()
		}
		options.SinceTime = &began // a kubelet may end the stream when it starts another file
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// sample looks at every process each 10 s.
func (s *soak) sample() {
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		s.mu.Lock()
		all := maps.Clone(s.processes)
		s.mu.Unlock()
		at := time.Now() // one moment for all, so that they can be judged together
		for name, p := range all {
			if p.ended {
				continue
			}
			now, err := sampleOf(p.pid)
			now.at = at
			if err == nil && p.metrics != nil {
				if now.goroutines, now.live = heapOf(p.metrics); now.goroutines == 0 && len(p.life) > 0 {
					last := p.life[len(p.life)-1] // it is busy, or on its way out
					now.goroutines, now.live = last.goroutines, last.live
				}
			}
			switch {
			case err == nil:
				s.mu.Lock()
				p.life = append(p.life, now)
				s.mu.Unlock()
			case p.metrics == nil:
				s.alarm(fmt.Sprintf("%s, process %d, has ended: %v", name, p.pid, err))
				fallthrough
			default:
				p.ended = true
			}
		}
		select {
		case <-ticker.C:
		case <-s.ended:
			return
		}
	}
}

var heapLine = regexp.MustCompile(`(?m)^(go_goroutines|go_memstats_next_gc_bytes) (\S+)$`)

// heapOf asks a manager how many goroutines it has, and how many KiB its heap had in use at the last collection, give or take a part that
// is always the same: the next one comes at so many times as much.
func heapOf(c *http.Client) (goroutines, live int) {
	answer, err := c.Get("http://localhost/metrics")
	if err != nil {
		return 0, 0
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return 0, 0
	}
	told := map[string]float64{}
	for _, match := range heapLine.FindAllStringSubmatch(string(body), -1) {
		if told[match[1]], err = strconv.ParseFloat(match[2], 64); err != nil {
			return 0, 0
		}
	}
	return int(told["go_goroutines"]), int(told["go_memstats_next_gc_bytes"]) >> 11
}

// progress says in a line how things are.
func (s *soak) progress(t *testing.T, users []*podUser, rotations int32) {
	t.Helper()
	line := fmt.Sprintf("after %v: %d requests, %d failed, %d rotations;", time.Since(s.began).Round(time.Second), s.requests.Load(),
		s.failures.Load(), rotations)
	for _, u := range users {
		line += fmt.Sprintf(" %s answered %d, newest %d;", u.pod, u.answered.Load(), u.newest.Load())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	line += " KiB resident and descriptors:"
	for _, name := range slices.Sorted(maps.Keys(s.processes)) {
		if p := s.processes[name]; !p.ended && len(p.life) > 0 {
			now := p.life[len(p.life)-1]
			line += fmt.Sprintf(" %s %d %d,", name, now.resident, now.descriptors)
		}
	}
	t.Log(strings.TrimSuffix(line, ","))
}

// report says what was done and what it took.
func (s *soak) report(t *testing.T, lasted time.Duration) {
	t.Helper()
	for _, kind := range slices.Sorted(maps.Keys(s.kinds)) {
		k := s.kinds[kind]
		t.Logf("%8d asked, %d failed, the slowest took %6v: %s", k.asked, k.failed, k.slowest.Round(time.Millisecond), kind)
	}
	t.Logf("%d requests in %v, %d failed; %d messages and %d blobs were kept and opened again", s.requests.Load(), lasted.Round(time.Second),
		s.failures.Load(), len(s.messages.all), len(s.blobs.all))
	for _, name := range slices.Sorted(maps.Keys(s.processes)) {
		p := s.processes[name]
		if len(p.life.settled()) == 0 || len(p.life.late()) == 0 {
			t.Logf("%s: %d samples", name, len(p.life))
			continue
		}
		before, after := p.life.settled(), p.life.late()
		t.Logf("%s: sampled for %v, %.2f %% of a processor; settled and late: resident %d and %d KiB, %d at most; anonymous %d and %d KiB; "+
			"descriptors %d and %d; threads %d and %d; goroutines %d and %d; live %d and %d KiB", name, p.life.lasted().Round(time.Second), 100*p.life.busy(),
			before.middle(resident), after.middle(resident), p.life[len(p.life)-1].peaks, before.middle(anonymous), after.middle(anonymous),
			before.least(descriptors), after.least(descriptors), before.least(threads), after.least(threads),
			before.least(goroutines), after.least(goroutines), before.least(live), after.least(live))
	}
}

// judge holds the run against what it is to show.
func (s *soak) judge(t *testing.T, lasted time.Duration) {
	t.Helper()
	if n := s.failures.Load(); n > 0 {
		t.Errorf("%d requests failed", n)
	}
	for what, times := range s.bad {
		t.Errorf("%d times in the logs: %s", times, what)
	}
	var managers []life
	for name, p := range s.processes {
		sidecar := p.metrics == nil
		if !sidecar && (p.ended || p.life.lasted() < lasted/2) {
			continue // replaced
		}
		grown := p.life.grown()
		if sidecar {
			grown = append(grown, p.life.moreConnections()...)
		} else {
			managers = append(managers, p.life)
		}
		for _, what := range grown {
			t.Errorf("%s has grown: %s", name, what)
		}
		if most := p.life.late().most(resident) << 10; sidecar && most > soakResident {
			t.Errorf("%s has %d bytes resident, want at most %d", name, most, soakResident)
		}
	}
	all := together(managers...)
	if settled, late := all.settled(), all.late(); len(settled) > 0 && len(late) > 0 {
		t.Logf("%d managers together: settled and late: descriptors %d and %d; goroutines %d and %d", len(managers), settled.least(descriptors),
			late.least(descriptors), settled.least(goroutines), late.least(goroutines))
	}
	for _, what := range all.moreConnections() {
		t.Errorf("the %d managers together have grown: %s", len(managers), what)
	}
	if busy := s.processes["sidecar of quiet"].life.busy(); busy > soakIdle {
		t.Errorf("the sidecar that nobody uses takes %.2f %% of a processor, want at most %.2f %%", 100*busy, 100*soakIdle)
	}
}
