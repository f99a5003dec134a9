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
)

// A plane is a control plane: etcd, which syncs to the disk as it does in a cluster, and an API server.
type plane struct {
	environment *envtest.Environment
	config      *rest.Config
	client      client.WithWatch
}

func startPlane(ctx context.Context) (*plane, error) {
	p := &plane{environment: &envtest.Environment{CRDDirectoryPaths: []string{"config/crd/bases"}, ErrorIfCRDPathMissing: true}}
	p.environment.ControlPlane.GetAPIServer().Configure().Append("max-requests-inflight", "2000")
	p.environment.ControlPlane.Etcd = &envtest.Etcd{}
	p.environment.ControlPlane.Etcd.Configure().Set("unsafe-no-fsync", "false")
	if err := p.open(ctx); err != nil {
		return nil, errors.Join(err, p.environment.Stop())
	}
	return p, nil
}

func (p *plane) open(ctx context.Context) (err error) {
	if p.config, err = p.environment.Start(); err != nil {
		return fmt.Errorf("start the API server: %w", err)
	}
	p.config.QPS = -1
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return err
	}
	if p.client, err = client.NewWithWatch(p.config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	for _, name := range []string{systemNamespace, tenant} {
		if err := p.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			return err
		}
	}
	webhooks := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "datakeys-injector"}}
	return p.client.Create(ctx, webhooks)
}

// manager is the process that is measured.
type manager struct {
	process   *exec.Cmd
	directory string
	log       bytes.Buffer
}

// startManager starts the manager on a control plane.
func startManager(ctx context.Context, binary string, on *plane) (m *manager, err error) {
	m = &manager{}
	if m.directory, err = os.MkdirTemp("", "datakeys-scale-"); err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(m.directory, "kubeconfig")
	if err = os.WriteFile(kubeconfig, on.environment.KubeConfig, 0o600); err == nil {
		m.process = exec.CommandContext(ctx, binary, "--kubeconfig="+kubeconfig, "--namespace="+systemNamespace,
			"--sidecar-image=datakeys/sidecar:scale", "--audit-log="+filepath.Join(m.directory, "audit"),
			"--metrics-bind=127.0.0.1:0", "--health-bind=127.0.0.1:0", "--key-service-bind=127.0.0.1:0", "--webhook-bind="+freeAddress())
		m.process.Stdout, m.process.Stderr = &m.log, &m.log
		err = m.process.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(m.directory))
	}
	return m, nil
}

func (m *manager) stop() {
	_ = m.signal(syscall.SIGCONT)
	_ = m.signal(syscall.SIGTERM)
	_ = m.process.Wait()
	_ = os.RemoveAll(m.directory)
}

func (m *manager) signal(s syscall.Signal) error { return m.process.Process.Signal(s) }

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		return "127.0.0.1:0"
	}
	defer l.Close() //nolint:errcheck // nothing was written
	return l.Addr().String()
}

// peakMemory is the greatest resident size that the manager ever had, in MB.
func (m *manager) peakMemory() (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.process.Process.Pid))
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
func (p *plane) writes(ctx context.Context) (phase, error) {
	transport, err := rest.TransportFor(p.config)
	if err != nil {
		return phase{}, err
	}
	server, _, err := rest.DefaultServerUrlFor(p.config)
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
	var w phase
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
			w.ofRequests += n
		case "secrets":
			w.ofSecrets += n
		case "masterkeys":
			w.ofKeys += n
		case "events":
			w.ofEvents += n
		}
	}
	return w, nil
}

func labelsOf(metric *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, pair := range metric.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
}
