package sidecar

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

const mediaText = "text/plain"

var metricsType = []string{"text/plain; version=0.0.4; charset=utf-8"} // Prometheus' text format

// help says what each metric is, as docs/native-api.md does at more length.
var help = map[string]string{
	"datakeys_sidecar_connections":                               "Open connections: unix at the socket, tcp at the loopback port.",
	"datakeys_sidecar_data_keys":                                 "Data keys, by state.",
	"datakeys_sidecar_door_requests_total":                       "Requests answered by the front doors, by door, operation and error code.",
	"datakeys_sidecar_event_streams":                             "Open streams of events.",
	"datakeys_sidecar_generations":                               "Generations of data keys, by state.",
	"datakeys_sidecar_key_service_calls_total":                   "Calls to the key service, by outcome.",
	"datakeys_sidecar_key_service_last_answer_timestamp_seconds": "Unix time at which the key service answered last, 0 for never.",
	"datakeys_sidecar_memory_locked":                             "1 if all keys are in locked memory.",
	"datakeys_sidecar_requests_total":                            "Requests answered by the native API, by path and class of status.",
}

// apiMetrics is GET /metrics. Its labels have few values, all known here: nothing that a client, an application or the key service
// sends becomes one.
type apiMetrics struct {
	renders  []renderer
	requests [len(routes)][6]*metrics.Counter // by route and the first digit of the status
}

// renderer is the method of a metrics.Set. No field of ours has that type itself: the linker keeps all methods of what a field's type
// leads to, and that one can push metrics over the network, by half a megabyte of code.
type renderer func(io.Writer)

func newAPIMetrics(a *api, more []renderer) *apiMetrics {
	metrics.ExposeMetadata(true) // the types and empty help texts, for all sets there are
	set := metrics.NewSet()
	m := &apiMetrics{renders: append([]renderer{set.WritePrometheus}, more...)}
	for to, path := range routes {
		for _, class := range []int{2, 4, 5} {
			m.requests[to][class] = set.NewCounter(fmt.Sprintf(`datakeys_sidecar_requests_total{path=%q,code="%dxx"}`, path, class))
		}
	}
	for _, state := range []keystore.State{keystore.StateIssued, keystore.StatePending, keystore.StateRefused} {
		set.NewGauge(fmt.Sprintf(`datakeys_sidecar_data_keys{state=%q}`, state), func() float64 {
			return countKeys(a.store, func(k *keystore.DataKey) (n int) {
				if k.State == state {
					n = 1
				}
				return n
			})
		})
		set.NewGauge(fmt.Sprintf(`datakeys_sidecar_generations{state=%q}`, state), func() float64 {
			return countKeys(a.store, func(k *keystore.DataKey) (n int) {
				for _, g := range k.Generations {
					if g.State == state {
						n++
					}
				}
				return n
			})
		})
	}
	for _, network := range []string{"unix", "tcp"} {
		set.NewGauge(fmt.Sprintf(`datakeys_sidecar_connections{network=%q}`, network), func() float64 { return a.dog.count(network) })
	}
	set.NewGauge(`datakeys_sidecar_event_streams`, func() float64 { return float64(a.watchers.Load()) })
	set.NewGauge(`datakeys_sidecar_memory_locked`, func() float64 {
		if envelope.MemoryLocked() != nil {
			return 0
		}
		return 1
	})
	return m
}

// countKeys adds up what f says of each data key.
func countKeys(s *keystore.Store, f func(*keystore.DataKey) int) float64 {
	n := 0
	for _, k := range s.Now().ByName {
		n += f(k)
	}
	return float64(n)
}

// count notes a request that was answered.
func (m *apiMetrics) count(to route, status int) {
	if c := m.requests[to][status/100]; c != nil {
		c.Inc()
	}
}

func (m *apiMetrics) answer(w http.ResponseWriter, r *http.Request) int {
	if negotiate(r.Header, mediaText) == "" {
		return notAcceptable(w, mediaText)
	}
	var text bytes.Buffer
	for _, render := range m.renders {
		render(&text)
	}
	return respond(w, metricsType, withHelp(text.Bytes()))
}

// withHelp fills in the help texts, which the library leaves empty.
func withHelp(text []byte) []byte {
	helped := make([]byte, 0, 2*len(text))
	for line := range bytes.Lines(text) {
		if name, ok := bytes.CutPrefix(line, []byte("# HELP ")); ok {
			name = bytes.TrimSuffix(name, []byte("\n"))
			line = fmt.Appendf(nil, "# HELP %s %s\n", name, help[string(name)])
		}
		helped = append(helped, line...)
	}
	return helped
}

// contact is what can be said of the calls to the key service.
type contact struct {
	render                    renderer
	answered, refused, failed *metrics.Counter
	last                      atomic.Int64 // Unix time of the last answer, 0 before the first
}

func newContact() *contact {
	set := metrics.NewSet()
	c := &contact{render: set.WritePrometheus}
	outcome := func(name string) *metrics.Counter {
		return set.NewCounter(fmt.Sprintf(`datakeys_sidecar_key_service_calls_total{outcome=%q}`, name))
	}
	c.answered, c.refused, c.failed = outcome("answered"), outcome("refused"), outcome("failed")
	set.NewGauge(`datakeys_sidecar_key_service_last_answer_timestamp_seconds`, func() float64 { return float64(c.last.Load()) })
	return c
}

// intercept is a grpc.UnaryClientInterceptor that counts every call. A refusal is an answer, too; a call that the sidecar gave up by
// itself, as it stops, is none and no failure either.
func (c *contact) intercept(
	ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	err := invoke(ctx, method, request, reply, cc, options...)
	code := status.Code(err)
	_, refusal := keystore.RefusalReason(code)
	switch {
	case err == nil:
		c.answered.Inc()
	case refusal:
		c.refused.Inc()
	case code == codes.Canceled:
		return err
	default:
		c.failed.Inc()
		return err
	}
	c.last.Store(time.Now().Unix())
	return err
}
