package main

import (
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/datakeys/datakeys/internal/inject"
	"github.com/datakeys/datakeys/internal/kms"
)

func TestWrongOptionsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no sidecar image":               {[]string{"--namespace=n"}, "--sidecar-image"},
		"no namespace":                   {[]string{"--sidecar-image=i"}, "--namespace"},
		"an empty root key":              {[]string{"--namespace=n", "--sidecar-image=i", "--root-key="}, "--root-key"},
		"a pull policy of none":          {[]string{"--namespace=n", "--sidecar-image=i", "--sidecar-image-pull-policy=Sometimes"}, "--sidecar-image-pull-policy"},
		"an address without a port":      {[]string{"--namespace=n", "--sidecar-image=i", "--key-service-bind=localhost"}, "--key-service-bind"},
		"no address of the key service":  {[]string{"--namespace=n", "--sidecar-image=i", "--key-service-bind="}, "--key-service-bind: must not be empty"},
		"no address of the webhook":      {[]string{"--namespace=n", "--sidecar-image=i", "--webhook-bind="}, "--webhook-bind: must not be empty"},
		"no address of the metrics":      {[]string{"--namespace=n", "--sidecar-image=i", "--metrics-bind="}, "--metrics-bind: must not be empty"},
		"no address of the probes":       {[]string{"--namespace=n", "--sidecar-image=i", "--health-bind="}, "--health-bind: must not be empty"},
		"metrics without a port":         {[]string{"--namespace=n", "--sidecar-image=i", "--metrics-bind=localhost"}, "--metrics-bind: address localhost"},
		"probes without a port":          {[]string{"--namespace=n", "--sidecar-image=i", "--health-bind=localhost"}, "--health-bind: address localhost"},
		"a word that is no flag":         {[]string{"--namespace=n", "--sidecar-image=i", "serve"}, `"serve" is no command: there are root-key-status and version`},
		"a kubeconfig that is not there": {[]string{"--namespace=n", "--sidecar-image=i", "--kubeconfig=/does/not/exist"}, "--kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseOptions(test.args, func(string) string { return "" }, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that names %s", err, test.want)
			}
		})
	}
}

func TestHelpNamesTheCommands(t *testing.T) {
	var out strings.Builder
	if _, err := parseOptions([]string{"--help"}, func(string) string { return "" }, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v, want flag.ErrHelp", err)
	}
	for _, want := range []string{"manager root-key-status", "manager version", "-root-key URI"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the help lacks %q:\n%s", want, out.String())
		}
	}
}

// What is tried again and again, and expected, fills no log with stack traces.
func TestErrorsAreLoggedWithAStackTraceOnRequestOnly(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"https://c"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want bool
	}{
		"by default":        {nil, false},
		"on request":        {[]string{"--zap-stacktrace-level=error"}, true},
		"while it is built": {[]string{"--zap-devel"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--namespace=n", "--sidecar-image=i", "--kubeconfig=" + kubeconfig}, c.args...)
			o, err := parseOptions(args, func(string) string { return "" }, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			o.zap.DestWriter = &out
			zap.New(zap.UseFlagOptions(&o.zap)).Error(errors.New("the root key is down"), "Trying again")
			if got := strings.Contains(out.String(), "options_test.go:") && strings.Contains(out.String(), "tRunner"); got != c.want {
				t.Errorf("a stack trace: %t, want %t:\n%s", got, c.want, out.String())
			}
		})
	}
}

// What controllers ask the API server, client-go logs by their logger: from a level on whole answers, the root key in its Secret too.
func TestNoLogLevelShowsSecrets(t *testing.T) {
	const key = "c2VjcmV0IHJvb3Qga2V5IG9mIDMyIGJ5dGVzIGFuZCBtb3Jl"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"data":{"key":"`+key+`"}}`)
	}))
	t.Cleanup(server.Close)
	set, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for _, level := range []string{"error", "info", "debug", "1", "5", "6", "7", "8", "9", "10", "100"} {
		o, err := parse(t, "--zap-log-level="+level)
		if err != nil {
			if !strings.Contains(err.Error(), "--zap-log-level: must be at most 7") {
				t.Errorf("level %s: got %v, want an error that names the flag and the rule", level, err)
			}
			continue
		}
		accepted++
		var out strings.Builder
		o.zap.DestWriter = &out
		ctx := logr.NewContext(t.Context(), zap.New(zap.UseFlagOptions(&o.zap)))
		if _, err := set.CoreV1().Secrets("n").Get(ctx, "s", metav1.GetOptions{}); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), key) {
			t.Errorf("level %s shows the key:\n%s", level, out.String())
		}
	}
	if accepted != 7 {
		t.Errorf("%d levels are accepted, want the first 7", accepted)
	}
}

// An error names the flag, the rule and what was set.
func TestLimitsAndResourcesOutOfRangeAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string // empty: nothing is wrong
	}{
		"the defaults":               {nil, ""},
		"the least of all":           {[]string{"--pod-calls-per-second=100", "--pod-refusals-per-second=1", "--sidecar-memory-limit=32Mi"}, ""},
		"the most of all":            {[]string{"--pod-calls-per-second=1000000", "--pod-refusals-per-second=10000"}, ""},
		"nothing asked for":          {[]string{"--sidecar-cpu-request=0", "--sidecar-memory-request=0"}, ""},
		"a limit of the processor":   {[]string{"--sidecar-cpu-limit=5m"}, ""},
		"fewer calls than data keys": {[]string{"--pod-calls-per-second=99"}, "--pod-calls-per-second: must be 100 to 1000000, and is 99"},
		"too many calls":             {[]string{"--pod-calls-per-second=1000001"}, "--pod-calls-per-second: must be 100 to 1000000, and is 1000001"},
		"no refusals":                {[]string{"--pod-refusals-per-second=0"}, "--pod-refusals-per-second: must be 1 to 10000, and is 0"},
		"too many refusals":          {[]string{"--pod-refusals-per-second=10001"}, "--pod-refusals-per-second: must be 1 to 10000, and is 10001"},
		"the shortest leases":        {[]string{"--lease-duration=5s", "--coast-time=0s"}, ""},
		"the longest leases":         {[]string{"--lease-duration=5m", "--coast-time=24h"}, ""},
		"a lease too short":          {[]string{"--lease-duration=4.9s"}, "--lease-duration: must be 5s to 5m0s, and is 4.9s: 15s is the default"},
		"a lease too long":           {[]string{"--lease-duration=301s"}, "--lease-duration: must be 5s to 5m0s, and is 5m1s"},
		"a coast time before now":    {[]string{"--coast-time=-1s"}, "--coast-time: must be 0s to 24h0m0s, and is -1s: 1h0m0s is the default"},
		"a coast time too long":      {[]string{"--coast-time=25h"}, "--coast-time: must be 0s to 24h0m0s, and is 25h0m0s"},
		"a time that is none":        {[]string{"--coast-time=long"}, "-coast-time"},
		"a number that is none":      {[]string{"--pod-calls-per-second=many"}, "-pod-calls-per-second"},
		"a quantity that is none":    {[]string{"--sidecar-memory-limit=lots"}, "-sidecar-memory-limit"},
		"a negative quantity":        {[]string{"--sidecar-cpu-request=-1m"}, "--sidecar-cpu-request: must not be negative, and is -1m"},
		"too little memory":          {[]string{"--sidecar-memory-limit=31Mi"}, "--sidecar-memory-limit: must be at least 32Mi, and is 31Mi"},
		"more memory asked for than may be taken": {
			[]string{"--sidecar-memory-request=65Mi"}, "--sidecar-memory-request: must be at most --sidecar-memory-limit, which is 64Mi, and is 65Mi",
		},
		"more of the processor asked for than may be taken": {
			[]string{"--sidecar-cpu-limit=4m"}, "--sidecar-cpu-request: must be at most --sidecar-cpu-limit, which is 4m, and is 5m",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, test.args...)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestLimitsAndResourcesArriveAsTheyWereSet(t *testing.T) {
	o, err := parse(t)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(inject.DefaultResources(), o.sidecarResources); diff != "" {
		t.Errorf("resources by default (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(kms.DefaultLimits, kms.LimitsOf(o.podCalls, o.podRefusals)); diff != "" {
		t.Errorf("limits by default (-want +got):\n%s", diff)
	}
	if o.leases != inject.DefaultLeases() {
		t.Errorf("leases by default: got %v", o.leases)
	}
	o, err = parse(t, "--lease-duration=20s", "--coast-time=10m", "--pod-calls-per-second=500", "--pod-refusals-per-second=2", "--sidecar-cpu-request=10m", "--sidecar-cpu-limit=1",
		"--sidecar-memory-request=24Mi", "--sidecar-memory-limit=48Mi")
	if err != nil {
		t.Fatal(err)
	}
	want := inject.Resources{
		CPURequest: resource.MustParse("10m"), CPULimit: resource.MustParse("1"),
		MemoryRequest: resource.MustParse("24Mi"), MemoryLimit: resource.MustParse("48Mi"),
	}
	if diff := cmp.Diff(want, o.sidecarResources); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	if want := (inject.Leases{Duration: 20 * time.Second, CoastTime: 10 * time.Minute}); o.leases != want {
		t.Errorf("leases: got %v, want %v", o.leases, want)
	}
	wantLimits := kms.Limits{Calls: 500, CallsBurst: 1000, Refusals: 2, RefusalsBurst: 50}
	if diff := cmp.Diff(wantLimits, kms.LimitsOf(o.podCalls, o.podRefusals)); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
}

// parse parses flags beside those that are required.
func parse(t *testing.T, args ...string) (*options, error) {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	const config = `{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
		"contexts": [{"name": "c", "context": {"cluster": "c"}}], "current-context": "c"}`
	if err := os.WriteFile(kubeconfig, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	required := []string{"--namespace=n", "--sidecar-image=i", "--kubeconfig=" + kubeconfig}
	return parseOptions(append(required, args...), func(string) string { return "" }, io.Discard)
}
