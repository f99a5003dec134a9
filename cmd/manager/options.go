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
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/datakeys/datakeys/internal/inject"
	"github.com/datakeys/datakeys/internal/seal"
)

// options is everything that the manager is told from outside.
type options struct {
	// namespace is the manager's own: where its Secrets, its Services and its Lease are.
	namespace  string
	restConfig *rest.Config

	rootKey, previousRootKey   string
	sealingKeyRotationInterval time.Duration
	auditLog                   string

	keyServiceBind, keyServiceName string
	webhookBind, webhookName       string
	webhookConfiguration           string
	metricsBind, healthBind        string
	leaderElect                    bool

	sidecarImage           string
	sidecarImagePullPolicy string

	zap zap.Options

	registerer prometheus.Registerer
	// tune lets tests change how the manager is made; nil changes nothing.
	tune func(*ctrl.Options)
	// openRootKey and tendPeriod are for tests; nil and 0 are what the manager does.
	openRootKey func(context.Context, string) (seal.RootKey, error)
	tendPeriod  time.Duration
}

// namespaceEnv is the environment variable with the manager's namespace, from the downward API.
const namespaceEnv = "POD_NAMESPACE"

func parseOptions(args []string, env func(string) string, stderr io.Writer) (*options, error) {
	o := &options{zap: zap.Options{DestWriter: os.Stderr}, registerer: metrics.Registry}
	flags := flag.NewFlagSet("manager", flag.ContinueOnError)
	flags.SetOutput(stderr)
	namespaceFlag(flags, env, &o.namespace)
	rootKeyFlags(flags, env, &o.rootKey, &o.previousRootKey)
	flags.DurationVar(&o.sealingKeyRotationInterval, "sealing-key-rotation-interval", 90*24*time.Hour,
		"`time` after which the sealing key, which seals the master keys, is rotated, such as 2160h; at least 1h; 0 is never, but on demand")
	flags.StringVar(&o.auditLog, "audit-log", "-", "`file` that audit records are appended to, one JSON object a line; - is the standard output")
	flags.StringVar(&o.keyServiceBind, "key-service-bind", ":8443", "`address` of the key service (gRPC over TLS)")
	flags.StringVar(&o.keyServiceName, "key-service-name", "datakeys-key-service", "`name` of the Service in front of the key service; its port is the one of --key-service-bind")
	flags.StringVar(&o.webhookBind, "webhook-bind", ":9443", "`address` of the pod injector (HTTPS)")
	flags.StringVar(&o.webhookName, "webhook-name", "datakeys-webhook", "`name` of the Service in front of the pod injector")
	flags.StringVar(&o.webhookConfiguration, "webhook-configuration", "datakeys-injector", "`name` of the MutatingWebhookConfiguration whose caBundle is kept")
	flags.StringVar(&o.metricsBind, "metrics-bind", ":8080", "`address` of the metrics (HTTP); 0 is none")
	flags.StringVar(&o.healthBind, "health-bind", ":8081", "`address` of /healthz and /readyz (HTTP)")
	flags.BoolVar(&o.leaderElect, "leader-elect", true, "run the controllers on one replica only")
	flags.StringVar(&o.sidecarImage, "sidecar-image", "", "`image` of the sidecar (required)")
	flags.StringVar(&o.sidecarImagePullPolicy, "sidecar-image-pull-policy", string(corev1.PullIfNotPresent), "pull `policy` of the sidecar's image: Always, IfNotPresent or Never")
	o.zap.BindFlags(flags)
	var kubeconfig string
	kubeconfigFlag(flags, &kubeconfig)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q: the manager takes flags only", flags.Arg(0))
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
	required("key-service-name", o.keyServiceName)
	required("webhook-name", o.webhookName)
	required("webhook-configuration", o.webhookConfiguration)
	for flag, value := range map[string]string{"key-service-bind": o.keyServiceBind, "webhook-bind": o.webhookBind} {
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
	return errors.Join(errs...)
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
