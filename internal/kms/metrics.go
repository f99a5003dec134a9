package kms

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/datakeys/datakeys/internal/seal"
)

// metrics count operations. The labels are operations and codes, which are few; nothing that a caller chooses becomes
// one.
type metrics struct {
	operations *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	// initialUses are of the initial version where it is no longer the primary one.
	initialUses *prometheus.CounterVec
	sealing     sealingMetrics
}

func newMetrics(r prometheus.Registerer, s *seal.Keyring) (*metrics, error) {
	m := &metrics{
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "datakeys_kms_operations_total",
			Help: "Operations of the key service, by operation and result code. Each item of a batch counts as Decrypt, or RenewDataKey, too.",
		}, []string{"operation", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "datakeys_kms_operation_duration_seconds",
			Help:    "Time that operations of the key service took.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"operation"}),
		initialUses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "datakeys_kms_initial_version_uses_total",
			Help: "What operations of Alibaba Cloud KMS other than the Advance ones encrypted under version 1 of a key that was rotated since: rotation does not reach it.",
		}, []string{"operation"}),
	}
	m.sealing = newSealingMetrics()
	if r == nil {
		return m, nil
	}
	for _, c := range append(m.sealing.collectors(s), m.operations, m.duration, m.initialUses) {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("registering the metrics of the key service: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(operation string, took time.Duration, err error) {
	code := "OK"
	if err != nil {
		code = CodeOf(err).String()
	}
	m.operations.WithLabelValues(operation, code).Inc()
	m.duration.WithLabelValues(operation).Observe(took.Seconds())
}
