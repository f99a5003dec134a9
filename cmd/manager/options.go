package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/inject"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/version"
)

// options is everything that the manager is told from outside.
type options struct {
	// namespace is the manager's own: where its Secrets, its Services and its Lease are.
	namespace  string
	restConfig *rest.Config

	rootKey, previousRootKey   string
	sealingKeyRotationInterval time.Duration
	auditLog                   string
	podCalls, podRefusals      int // a second
	rewrapRate                 int // a second

	keyServiceBind, keyServiceName string
	webhookBind, webhookName       string
	webhookConfiguration           string
	metricsBind, healthBind        string
	leaderElect                    bool

	sidecarImage           string
	sidecarImagePullPolicy string
	sidecarResources       inject.Resources
	leases                 inject.Leases

	zap zap.Options

	registerer prometheus.Registerer
	// tune lets tests change how the manager is made; nil changes nothing.
	tune func(*ctrl.Options)
	// tendPeriod, countDelay, clock and serverTime are for tests; their zero values are what the manager does.
	tendPeriod, countDelay time.Duration
	clock                  clock.PassiveClock                       // the controllers' and the key service's
	serverTime             func(context.Context) (time.Time, error) // in place of the API server's clock
}

// usage comes before the flags.
const usage = `usage: manager [FLAGS]                    run
       manager ` + rootKeyStatusCommand + ` [FLAGS]    print which root keys wrap the sealing keys, and what to do; --help has its flags
       manager ` + version.Command + `                    print the version

The flags of a manager that runs:

`

// namespaceEnv is the environment variable with the manager's namespace, from the downward API.
const namespaceEnv = "POD_NAMESPACE"

func parseOptions(args []string, env func(string) string, stderr io.Writer) (*options, error) {
	o := &options{zap: zap.Options{DestWriter: os.Stderr}, registerer: metrics.Registry}
	flags := flag.NewFlagSet("manager", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprint(stderr, usage)
		flags.PrintDefaults()
	}
	namespaceFlag(flags, env, &o.namespace)
	rootKeyFlags(flags, env, &o.rootKey, &o.previousRootKey)
	flags.DurationVar(&o.sealingKeyRotationInterval, "sealing-key-rotation-interval", 90*24*time.Hour,
		"`time` after which the sealing key, which seals the master keys, is rotated, such as 2160h; at least 1h; 0 is never, but on demand")
	flags.StringVar(&o.auditLog, "audit-log", "-", "`file` that audit records are appended to, one JSON object a line; - is the standard output")
	flags.IntVar(&o.podCalls, "pod-calls-per-second", kms.DefaultLimits.Calls,
		fmt.Sprintf("`number` of calls a second that one pod is answered on and on, by each replica, and twice as many at once; %d to %d", minPodCalls, maxPodCalls))
	flags.IntVar(&o.podRefusals, "pod-refusals-per-second", kms.DefaultLimits.Refusals,
		fmt.Sprintf("`number` of calls a second that one pod is refused on and on, by each replica, and 25 times as many at once; 1 to %d", maxPodRefusals))
	flags.IntVar(&o.rewrapRate, "rewraps-per-second", controllers.DefaultRewrapRate,
		fmt.Sprintf("`number` of DataKeyRequests that are wrapped anew a second at most, after a rotation of their master key; each costs two writes; 1 to %d", maxRewrapRate))
	flags.StringVar(&o.keyServiceBind, "key-service-bind", ":8443", "`address` of the key service (gRPC over TLS)")
	flags.StringVar(&o.keyServiceName, "key-service-name", "datakeys-key-service", "`name` of the Service in front of the key service; its port is the one of --key-service-bind")
	flags.StringVar(&o.webhookBind, "webhook-bind", ":9443", "`address` of the pod injector (HTTPS)")
	flags.StringVar(&o.webhookName, "webhook-name", "datakeys-webhook", "`name` of the Service in front of the pod injector")
	flags.StringVar(&o.webhookConfiguration, "webhook-configuration", "datakeys-injector", "`name` of the MutatingWebhookConfiguration whose caBundle is kept")
	flags.StringVar(&o.metricsBind, "metrics-bind", ":8080", "`address` of the metrics (HTTP); 0 is none")
	flags.StringVar(&o.healthBind, "health-bind", ":8081", "`address` of /healthz and /readyz (HTTP); 0 is none")
	flags.BoolVar(&o.leaderElect, "leader-elect", true, "run the controllers on one replica only")
	flags.StringVar(&o.sidecarImage, "sidecar-image", "", "`image` of the sidecar (required)")
	flags.StringVar(&o.sidecarImagePullPolicy, "sidecar-image-pull-policy", string(corev1.PullIfNotPresent), "pull `policy` of the sidecar's image: Always, IfNotPresent or Never")
	o.sidecarResources = inject.DefaultResources()
	flags.Var(quantity{&o.sidecarResources.CPURequest}, "sidecar-cpu-request", "`processors` that the sidecar of a pod asks for")
	flags.Var(quantity{&o.sidecarResources.CPULimit}, "sidecar-cpu-limit", "`processors` that it may take; 0 is no limit, but 100m in a pod of the QoS class Guaranteed")
	flags.Var(quantity{&o.sidecarResources.MemoryRequest}, "sidecar-memory-request", "`memory` that it asks for")
	flags.Var(quantity{&o.sidecarResources.MemoryLimit}, "sidecar-memory-limit", "`memory` that it may take, at least 32Mi")
	o.leases = inject.DefaultLeases()
	flags.DurationVar(&o.leases.Duration, "lease-duration", o.leases.Duration,
		"`time` for which a sidecar issues a data key without having it renewed, 5s to 5m; a pod may lower it")
	flags.DurationVar(&o.leases.CoastTime, "coast-time", o.leases.CoastTime,
		"`time` for which a sidecar goes on while the key service cannot be reached, 0s to 24h; a pod may lower it")
	o.zap.BindFlags(flags)
	var kubeconfig string
	kubeconfigFlag(flags, &kubeconfig)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	// An error names its cause and the way out, and comes again with each try: where in the code it came from helps nobody then.
	if !o.zap.Development && o.zap.StacktraceLevel == nil {
		if err := flags.Set("zap-stacktrace-level", "panic"); err != nil {
			return nil, err
		}
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is no command: there are %s and %s, and without a command the manager runs", flags.Arg(0),
			rootKeyStatusCommand, version.Command)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	var err error
	o.restConfig, err = loadKubeconfig(kubeconfig)
	return o, err
}

func namespaceFlag(flags *flag.FlagSet, env func(string) string, namespace *string) {
	flags.StringVar(namespace, "namespace", env(namespaceEnv), "the manager's own `namespace`; the default is $"+namespaceEnv)
}

func kubeconfigFlag(flags *flag.FlagSet, path *string) {
	flags.StringVar(path, "kubeconfig", "", "`path` of a kubeconfig; the default is $KUBECONFIG, or the pod's ServiceAccount")
}

var errEmptyNamespace = errors.New("--namespace: must not be empty")

func (o *options) validate() error {
	var errs []error
	required := func(flag, value string) {
		if value == "" {
			errs = append(errs, fmt.Errorf("--%s: must not be empty", flag))
		}
	}
	if o.namespace == "" {
		errs = append(errs, errEmptyNamespace)
	}
	required("sidecar-image", o.sidecarImage)
	required("root-key", o.rootKey)
	required("audit-log", o.auditLog)
	required("key-service-bind", o.keyServiceBind) // which would be a free port, that no Service leads to
	required("key-service-name", o.keyServiceName)
	required("webhook-bind", o.webhookBind)
	required("webhook-name", o.webhookName)
	required("webhook-configuration", o.webhookConfiguration)
	required("metrics-bind", o.metricsBind)
	required("health-bind", o.healthBind)
	addresses := map[string]string{"key-service-bind": o.keyServiceBind, "webhook-bind": o.webhookBind}
	for flag, value := range map[string]string{"metrics-bind": o.metricsBind, "health-bind": o.healthBind} {
		if value != "0" {
			addresses[flag] = value
		}
	}
	for flag, value := range addresses {
		if _, _, err := splitAddress(value); err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
		}
	}
	if o.previousRootKey == o.rootKey && o.rootKey != "" {
		errs = append(errs, errors.New("--previous-root-key: must be another root key than --root-key, or empty"))
	}
	// A rotation writes every Secret with master key material.
	if o.sealingKeyRotationInterval != 0 && o.sealingKeyRotationInterval < time.Hour {
		errs = append(errs, errors.New("--sealing-key-rotation-interval: must be 0 or at least 1h"))
	}
	if err := inject.CheckPullPolicy(corev1.PullPolicy(o.sidecarImagePullPolicy)); err != nil {
		errs = append(errs, fmt.Errorf("--sidecar-image-pull-policy: %w", err))
	}
	// From there on client-go logs what it sends and gets, by the logger of a controller: Secrets, and the root key in one of them.
	if o.zap.Level != nil && o.zap.Level.Enabled(-maxLogLevel-1) {
		errs = append(errs, fmt.Errorf("--zap-log-level: must be at most %d: from %d on, what is in Secrets is logged", maxLogLevel, maxLogLevel+1))
	}
	return errors.Join(append(errs, o.validateLimits(), o.validateResources())...)
}

const (
	minPodCalls    = v1alpha1.MaxDataKeys
	maxPodCalls    = 1_000_000
	maxPodRefusals = 10_000
	maxRewrapRate  = 100_000
	maxLogLevel    = 7
)

func (o *options) validateLimits() error {
	var errs []error
	if o.podCalls < minPodCalls || o.podCalls > maxPodCalls {
		errs = append(errs, fmt.Errorf("--pod-calls-per-second: must be %d to %d, and is %d: a sidecar asks for up to %d data keys at once, and %d is the default",
			minPodCalls, maxPodCalls, o.podCalls, v1alpha1.MaxDataKeys, kms.DefaultLimits.Calls))
	}
	if o.podRefusals < 1 || o.podRefusals > maxPodRefusals {
		errs = append(errs, fmt.Errorf("--pod-refusals-per-second: must be 1 to %d, and is %d: each refusal costs an audit record and reviews, and %d is the default",
			maxPodRefusals, o.podRefusals, kms.DefaultLimits.Refusals))
	}
	if o.rewrapRate < 1 || o.rewrapRate > maxRewrapRate {
		errs = append(errs, fmt.Errorf("--rewraps-per-second: must be 1 to %d, and is %d: %d is the default", maxRewrapRate, o.rewrapRate, controllers.DefaultRewrapRate))
	}
	if err := inject.CheckLeaseDuration(o.leases.Duration); err != nil {
		errs = append(errs, fmt.Errorf("--lease-duration: %w", err))
	}
	if err := inject.CheckCoastTime(o.leases.CoastTime); err != nil {
		errs = append(errs, fmt.Errorf("--coast-time: %w", err))
	}
	return errors.Join(errs...)
}

// leastSidecarMemory is the least limit by which the kernel does not end a sidecar that serves.
var leastSidecarMemory = resource.MustParse("32Mi")

func (o *options) validateResources() error {
	r := o.sidecarResources
	var errs []error
	for flag, q := range map[string]resource.Quantity{
		"cpu-request": r.CPURequest, "cpu-limit": r.CPULimit, "memory-request": r.MemoryRequest, "memory-limit": r.MemoryLimit,
	} {
		if q.Sign() < 0 {
			errs = append(errs, fmt.Errorf("--sidecar-%s: must not be negative, and is %s", flag, &q))
		}
	}
	if r.MemoryLimit.Cmp(leastSidecarMemory) < 0 {
		errs = append(errs, fmt.Errorf("--sidecar-memory-limit: must be at least %s, and is %s: a sidecar takes up to 20Mi at rest, and more while it serves",
			&leastSidecarMemory, &r.MemoryLimit))
	}
	for kind, pair := range map[string]struct{ request, limit resource.Quantity }{
		"cpu": {r.CPURequest, r.CPULimit}, "memory": {r.MemoryRequest, r.MemoryLimit},
	} {
		if !pair.limit.IsZero() && pair.request.Cmp(pair.limit) > 0 {
			errs = append(errs, fmt.Errorf("--sidecar-%[1]s-request: must be at most --sidecar-%[1]s-limit, which is %[2]s, and is %[3]s: lower it, or raise the limit",
				kind, &pair.limit, &pair.request))
		}
	}
	return errors.Join(errs...)
}

// quantity is a flag.
type quantity struct{ *resource.Quantity }

// Set implements flag.Value.
func (q quantity) Set(text string) (err error) {
	*q.Quantity, err = resource.ParseQuantity(text)
	return err
}

// splitAddress takes host:port apart. Port 0 is a free one.
func splitAddress(address string) (host string, port int, err error) {
	tcp, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return "", 0, err
	}
	host, _, _ = net.SplitHostPort(address)
	return host, tcp.Port, nil
}

func loadKubeconfig(path string) (*rest.Config, error) {
	load := config.GetConfig // $KUBECONFIG, or the pod's ServiceAccount
	if path != "" {
		load = func() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", path) }
	}
	c, err := load()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: find the API server: %w", err)
	}
	c.QPS = -1 // the API server's priority and fairness limits us, and knows better
	c.UserAgent = "datakeys-manager"
	return c, nil
}
