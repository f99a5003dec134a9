package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/certs"
	"github.com/datakeys/datakeys/internal/coredump"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/inject"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/version"
)

const (
	// leaseName is the Lease that the leader holds, in the manager's namespace.
	leaseName = "datakeys-manager"
	// shutdownTimeout is how long the manager takes at most to end, within the pod's grace period of 30 s.
	shutdownTimeout = 20 * time.Second
	// concurrency is how many objects of a kind are worked on at once. The work is waiting for the API server.
	concurrency = 8
)

// run wires the rooms together and returns when the context ends or something that all depends on fails.
func run(ctx context.Context, o *options, log logr.Logger) error {
	log.Info("Starting", "version", version.String())
	if err := coredump.Forbid(); err != nil {
		log.Info("A crash may leave a memory dump with master keys", "reason", err.Error())
	}
	if err := envelope.MemoryLocked(); err != nil {
		log.Info("Master keys are not in locked memory", "reason", err.Error())
	}
	audit, err := openAudit(o.auditLog)
	if err != nil {
		return err
	}
	defer audit.Close() //nolint:errcheck // every record was written by a write of its own

	mgr, authority, err := newManager(o, log)
	if err != nil {
		return err
	}
	bundle := certs.NewCABundle(authority, mgr.GetAPIReader(), mgr.GetClient(), o.webhookConfiguration, nil, log.WithName("webhook"))
	service, err := newKeyService(mgr, o, authority, kms.NewJSONAuditor(audit), log.WithName("key-service"))
	if err != nil {
		return err
	}
	now := o.serverTime
	if now == nil {
		now = serverTime(mgr.GetConfig(), mgr.GetHTTPClient())
	}
	if err := controllers.Setup(ctx, mgr, controllers.Config{
		KeyService:              service,
		Namespace:               o.namespace,
		ServerTime:              now,
		Clock:                   o.clock,
		MaxConcurrentReconciles: concurrency,
		Registerer:              o.registerer,
		RewrapRate:              o.rewrapRate,
		CountDelay:              o.countDelay,
	}); err != nil {
		return fmt.Errorf("set the controllers up: %w", err)
	}
	if err := registerInjector(mgr, o, authority); err != nil {
		return err
	}
	tender := func(leads bool) *sealTender {
		return &sealTender{
			service: service, leads: leads, interval: o.sealingKeyRotationInterval,
			period: cmp.Or(o.tendPeriod, tendPeriod), log: log.WithName("seal"),
		}
	}
	for _, runnable := range []manager.Runnable{authority, bundle, service, tender(false), tender(true)} {
		if err := mgr.Add(runnable); err != nil {
			return err
		}
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	for name, check := range map[string]healthz.Checker{
		"unsealed":      service.Ready,
		"serving-roots": authority.Ready,
		"ca-bundle":     bundle.Ready,
		"webhook":       mgr.GetWebhookServer().StartedChecker(),
	} {
		if err := mgr.AddReadyzCheck(name, check); err != nil {
			return err
		}
	}
	return mgr.Start(ctx)
}

// newManager makes the manager and, because the webhook server needs it from the start, the authority of the serving
// certificates.
func newManager(o *options, log logr.Logger) (ctrl.Manager, *certs.Authority, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(v1alpha1.AddToScheme(scheme))

	host, port, err := splitAddress(o.webhookBind)
	if err != nil {
		return nil, nil, fmt.Errorf("--webhook-bind: %w", err)
	}
	// The authority reads and writes through the manager, which has to exist first: it is given to the webhook server late.
	var authority *certs.Authority
	names := certs.ServiceDNSNames(o.webhookName, o.namespace)
	timeout := shutdownTimeout
	managerOptions := ctrl.Options{
		Scheme:                        scheme,
		Logger:                        log,
		Cache:                         controllers.CacheOptions(),
		Metrics:                       metricsserver.Options{BindAddress: o.metricsBind},
		HealthProbeBindAddress:        o.healthBind,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true, // the next leader does not have to wait for the Lease to run out
		GracefulShutdownTimeout:       &timeout,
		WebhookServer: webhook.NewServer(webhook.Options{
			Host:    host,
			Port:    port,
			TLSOpts: []func(*tls.Config){func(c *tls.Config) { authority.WebhookTLS(names...)(c) }},
		}),
	}
	if o.tune != nil {
		o.tune(&managerOptions)
	}
	mgr, err := ctrl.NewManager(o.restConfig, managerOptions)
	if err != nil {
		return nil, nil, fmt.Errorf("make the manager: %w", err)
	}
	authority = certs.NewAuthority(certs.NewSecretStore(mgr.GetAPIReader(), mgr.GetClient(), o.namespace), nil, log.WithName("certificates"))
	return mgr, authority, nil
}

func newKeyService(mgr ctrl.Manager, o *options, authority *certs.Authority, auditor kms.Auditor, log logr.Logger) (*keyService, error) {
	set, err := kubernetes.NewForConfigAndClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return nil, err
	}
	store := secretStore{reader: mgr.GetAPIReader(), writer: mgr.GetClient(), namespace: o.namespace}
	tlsConfig := authority.ServerTLSConfig(certs.ServiceDNSNames(o.keyServiceName, o.namespace)...)
	return &keyService{
		seal: seal.Config{
			RootKey: o.rootKey, PreviousRootKey: o.previousRootKey, Store: store,
			Record: recordChanges(auditor, clock.RealClock{}), Logger: log.WithName("seal"), OpenRootKey: rootkey.Open,
		},
		config: kms.Config{
			Keys:          store,
			MasterKeys:    newMasterKeys(mgr.GetClient(), mgr.GetAPIReader()),
			Authenticator: newTokenReviewer(set.AuthenticationV1().TokenReviews()),
			Authorizer:    newAccessReviewer(set.AuthorizationV1().SubjectAccessReviews()),
			Auditor:       auditor,
			Events:        newServiceEvents(mgr.GetEventRecorder("datakeys-key-service"), mgr.GetClient()),
			Registerer:    o.registerer,
			Clock:         o.clock,
			Limits:        kms.LimitsOf(o.podCalls, o.podRefusals),
			Logger:        log,
		},
		listen: func(ctx context.Context) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", o.keyServiceBind)
		},
		serve: func(service *kms.Service) *grpc.Server {
			return kmsgrpc.NewServer(service, tlsConfig, log)
		},
		log:      log,
		unsealed: make(chan struct{}),
	}, nil
}

func registerInjector(mgr ctrl.Manager, o *options, authority *certs.Authority) error {
	_, port, err := splitAddress(o.keyServiceBind)
	if err != nil {
		return fmt.Errorf("--key-service-bind: %w", err)
	}
	handler, err := inject.NewHandler(inject.Config{
		Image:           o.sidecarImage,
		ImagePullPolicy: corev1.PullPolicy(o.sidecarImagePullPolicy),
		Resources:       o.sidecarResources,
		Leases:          o.leases,
		KeyService:      net.JoinHostPort(o.keyServiceName+"."+o.namespace+".svc", strconv.Itoa(port)),
	}, authority.RootsPEM, dataKeyRequests{cache: mgr.GetClient()})
	if err != nil {
		return fmt.Errorf("set the pod injector up: %w", err)
	}
	mgr.GetWebhookServer().Register(inject.Path, &webhook.Admission{Handler: handler})
	return nil
}
