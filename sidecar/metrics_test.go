package sidecar

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// scrape reads the metrics as Prometheus does: by name and labels, those that are 0 left out.
func scrape(t *testing.T, path string) map[string]float64 {
	t.Helper()
	response, body := roundTrip(t, path, get("/metrics",
		"Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"))
	if got := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || got != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("got %s, %s", response.Status, got)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		t.Fatalf("%v:\n%s", err, body)
	}
	got := map[string]float64{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			series := name
			for _, l := range m.GetLabel() {
				series += " " + l.GetName() + "=" + l.GetValue()
			}
			value := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if m.GetUntyped() != nil {
				t.Errorf("%s has no type", series)
			}
			if value != 0 {
				got[series] = value
			}
		}
	}
	for _, plaintext := range [][]byte{testPlaintext, olderPlaintext, oldestPlaintext, secretData} {
		checkHides(t, "the metrics", string(body), plaintext)
	}
	return got
}

func TestMetrics(t *testing.T) {
	var server *http.Server
	path := serveStore(t, cryptStore(t), func(s *http.Server, _ *listener, _ *watchdog) { server = s })
	requests := []string{
		get("/v1/data-keys"), get("/v1/data-keys/orders"), get("/v1/data-keys/orders"), get("/v1/data-keys/other"),
		get("/v1/data-keys/late"), get("/readyz"), get("/healthz"), get("/x"), get("/v1/data-keys/" + strings.Repeat("a", maxURI)),
		post(encryptOrders, mediaBytes, secretData), postJSON(encryptOrders, "{}"), post(decryptOrders, mediaBytes, secretData),
		post("/v1/data-keys/gone/encrypt", mediaBytes, secretData), get(ordersEvents, "Accept: text/html"),
	}
	for _, request := range requests {
		roundTrip(t, path, request)
	}
	events := openStream(t, path, get(ordersEvents))
	events.wants(t, "retry: 1000")
	server.Handler.(*api).metrics.contact.answered.Inc()
	want := map[string]float64{
		"datakeys_sidecar_requests_total path=/v1/data-keys code=2xx":                1,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name} code=2xx":         2,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name} code=4xx":         2,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name} code=5xx":         1,
		"datakeys_sidecar_requests_total path=/readyz code=5xx":                      1,
		"datakeys_sidecar_requests_total path=/healthz code=2xx":                     1,
		"datakeys_sidecar_requests_total path=other code=4xx":                        1,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name}/encrypt code=2xx": 1,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name}/encrypt code=4xx": 1,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name}/encrypt code=5xx": 1,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name}/decrypt code=4xx": 1,
		"datakeys_sidecar_requests_total path=/v1/data-keys/{name}/events code=4xx":  1,
		"datakeys_sidecar_data_keys state=Issued":                                    6,
		"datakeys_sidecar_data_keys state=Pending":                                   1,
		"datakeys_sidecar_data_keys state=Refused":                                   3,
		"datakeys_sidecar_generations state=Issued":                                  9,
		"datakeys_sidecar_generations state=Pending":                                 1,
		"datakeys_sidecar_generations state=Refused":                                 3,
		"datakeys_sidecar_event_streams":                                             1,
		"datakeys_sidecar_memory_locked":                                             1,
		"datakeys_sidecar_key_service_calls_total outcome=answered":                  1,
	}
	const scrapes = "datakeys_sidecar_requests_total path=/metrics code=2xx"
	for { // a request is counted when it is over, which is after its answer
		got, counted := scrape(t, path), 0.0
		delete(got, scrapes)
		for series, value := range got {
			if strings.HasPrefix(series, "datakeys_sidecar_requests_total") {
				counted += value
			}
		}
		if counted < float64(len(requests)) {
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		break
	}
	for scrape(t, path)[scrapes] == 0 { // see above
	}
}

// TestContact counts calls over a real connection.
func TestContact(t *testing.T) {
	p := newPod(t, "orders")
	client, err := NewClient(p.config.KeyService, p.config.Roots, p.config.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	sealed := []Sealed{{CiphertextBlob: p.service.Seal(t, "orders", 1, testPlaintext, nil)}}
	counts := func() [4]float64 {
		c := client.contact
		return [4]float64{float64(c.answered.Get()), float64(c.refused.Get()), float64(c.failed.Get()), float64(min(c.last.Load(), 1))}
	}
	for _, step := range []struct {
		err  error
		want [4]float64
	}{
		{status.Error(codes.Unavailable, "not now"), [4]float64{0, 0, 1, 0}},
		{status.Error(codes.Unauthenticated, "who is that"), [4]float64{0, 1, 1, 1}},
		{nil, [4]float64{1, 1, 1, 1}},
		{status.Error(codes.Canceled, "given up"), [4]float64{1, 1, 1, 1}},
		{status.Error(codes.Internal, "broken"), [4]float64{1, 1, 2, 1}},
	} {
		p.service.Fail(step.err)
		opened, err := client.Open(t.Context(), sealed)
		if status.Code(err) != status.Code(step.err) {
			t.Fatalf("got %v, want %v", err, step.err)
		}
		for _, o := range opened {
			o.Plaintext.Destroy()
		}
		if got := counts(); got != step.want {
			t.Errorf("after %v: got %v, want %v", step.err, got, step.want)
		}
	}
}
