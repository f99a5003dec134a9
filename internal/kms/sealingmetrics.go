package kms

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/datakeys/datakeys/internal/seal"
)

// sealingMetrics tell how far the leader is with sealing master keys anew.
type sealingMetrics struct {
	// secrets are those with master key material that the last pass found, by what became of them.
	secrets  *prometheus.GaugeVec
	resealed prometheus.Counter
}

// States of a Secret in a pass.
const (
	resealWaiting = "waiting"
	resealDone    = "done"
	resealFailed  = "failed"
)

func newSealingMetrics() sealingMetrics {
	return sealingMetrics{
		secrets: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "datakeys_reseal_secrets",
			Help: "Secrets with master key material in the leader's current or last pass: waiting to be looked at, done (all sealed by the primary sealing key), or failed.",
		}, []string{"state"}),
		resealed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "datakeys_resealed_secrets_total",
			Help: "Secrets with master key material that this manager sealed anew by a newer sealing key.",
		}),
	}
}

// collectors are these metrics and those that the seal itself tells.
func (m sealingMetrics) collectors(s *seal.Keyring) []prometheus.Collector {
	gauge := func(name, help string, value func(seal.Report) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(s.Report()) })
	}
	collectors := []prometheus.Collector{
		m.secrets, m.resealed,
		gauge("datakeys_root_key_embedded",
			"1 if a root key that wraps the sealing keys is embedded: whoever reads the Secrets of the manager's namespace can unseal every key.",
			func(r seal.Report) float64 { return oneIf(r.Embedded) }),
		gauge("datakeys_root_keys", "Root keys that wrap the sealing keys: 1, and more while the root key is being changed.",
			func(r seal.Report) float64 { return float64(len(r.RootKeys)) }),
		gauge("datakeys_sealing_key_version", "Version of the sealing key that seals.",
			func(r seal.Report) float64 { return float64(r.Primary) }),
		gauge("datakeys_sealing_key_primary_since_timestamp_seconds", "When the sealing key that seals began to, in Unix time.",
			func(r seal.Report) float64 { return float64(r.PrimarySince.Unix()) }),
	}
	for _, verdict := range seal.Verdicts {
		collectors = append(collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "datakeys_root_key_verdict",
			Help:        "1 for how this manager sees the root key of the installation: Settled, KeepsPrevious, Changing, Elsewhere or Sealed.",
			ConstLabels: prometheus.Labels{"verdict": string(verdict)},
		}, func() float64 { return oneIf(s.Report().Verdict == verdict) }))
	}
	return collectors
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
