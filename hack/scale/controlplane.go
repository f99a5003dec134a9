package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

const (
	systemNamespace = "datakeys-system"
	tenant          = "tenant"
	bareTenant      = "bare"
)

// scale is one run.
type scale struct {
	manager                  string
	keys, requests, parallel int
	idle                     time.Duration
	profile                  string

	environment *envtest.Environment
	config      *rest.Config
	client      client.WithWatch
	directory   string
	process     *exec.Cmd
	log         bytes.Buffer
}

// start starts etcd, which syncs to the disk as it does in a cluster, and the API server.
func (s *scale) start(ctx context.Context) (err error) {
	if s.manager == "" {
		return errors.New("-manager: must not be empty")
	}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.directory, err = os.MkdirTemp("", "datakeys-scale-"); err != nil {
		return err
	}
	s.environment = &envtest.Environment{CRDDirectoryPaths: []string{"config/crd/bases"}, ErrorIfCRDPathMissing: true}
	s.environment.ControlPlane.GetAPIServer().Configure().Append("max-requests-inflight", "2000")
	s.environment.ControlPlane.Etcd = &envtest.Etcd{}
	s.environment.ControlPlane.Etcd.Configure().Set("unsafe-no-fsync", "false")
	if s.config, err = s.environment.Start(); err != nil {
		return fmt.Errorf("start the API server: %w", err)
	}
	s.config.QPS = -1
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	if s.client, err = client.NewWithWatch(s.config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	for _, name := range []string{systemNamespace, tenant, bareTenant} {
		if err := s.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	webhooks := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "datakeys-injector"}}
	return s.client.Create(ctx, webhooks)
}

func (s *scale) stop() {
	if s.process != nil {
		_ = s.process.Process.Signal(syscall.SIGTERM)
		_ = s.process.Wait()
	}
	if s.environment != nil {
		_ = s.environment.Stop()
	}
	_ = os.RemoveAll(s.directory)
}

// startManager starts the manager, and waits until it leads.
func (s *scale) startManager(ctx context.Context) error {
	kubeconfig := filepath.Join(s.directory, "kubeconfig")
	if err := os.WriteFile(kubeconfig, s.environment.KubeConfig, 0o600); err != nil {
		return err
	}
	s.process = exec.CommandContext(ctx, s.manager, "--kubeconfig="+kubeconfig, "--namespace="+systemNamespace,
		"--sidecar-image=datakeys/sidecar:scale", "--audit-log="+filepath.Join(s.directory, "audit"),
		"--metrics-bind=127.0.0.1:0", "--health-bind=127.0.0.1:0", "--key-service-bind=127.0.0.1:0", "--webhook-bind="+freeAddress())
	s.process.Stdout, s.process.Stderr = &s.log, &s.log
	return s.process.Start()
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		return "127.0.0.1:0"
	}
	defer l.Close() //nolint:errcheck // nothing was written
	return l.Addr().String()
}

// peakMemory is the greatest resident size that the manager ever had, in MB.
func (s *scale) peakMemory() (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "VmHWM:"); found {
			kB, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")))
			return kB * 1024 / 1_000_000, err
		}
	}
	return 0, errors.New("the kernel does not tell the peak")
}

// writes counts the API server's writes since it started.
func (s *scale) writes(ctx context.Context) (phase, error) {
	transport, err := rest.TransportFor(s.config)
	if err != nil {
		return phase{}, err
	}
	server, _, err := rest.DefaultServerUrlFor(s.config)
	if err != nil {
		return phase{}, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.JoinPath("metrics").String(), http.NoBody)
	if err != nil {
		return phase{}, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return phase{}, err
	}
	defer response.Body.Close() //nolint:errcheck // it is read
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return phase{}, err
	}
	var p phase
	for _, metric := range families["apiserver_request_total"].GetMetric() {
		labels := labelsOf(metric)
		n := int(metric.GetCounter().GetValue())
		if labels["code"] >= "300" {
			continue
		}
		switch labels["verb"] {
		case "POST", "PUT", "PATCH", "APPLY", "DELETE":
		default:
			continue
		}
		switch labels["resource"] {
		case "datakeyrequests":
			p.ofRequests += n
		case "secrets":
			p.ofSecrets += n
		case "masterkeys":
			p.ofKeys += n
		case "events":
			p.ofEvents += n
		}
	}
	return p, nil
}

func labelsOf(metric *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, pair := range metric.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
}
