package sidecar

import (
	"bufio"
	"encoding/base64"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/datakeys/datakeys/internal/porttest"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
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
		if family.GetHelp() == "" {
			t.Errorf("%s has no help text", name)
		}
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
	contact := newContact()
	contact.answered.Inc()
	path := serveStore(t, cryptStore(t), func(s *http.Server, _ *listener, _ *watchdog) {
		m := s.Handler.(*api).metrics //nolint:forcetypeassert // what serveStore serves
		m.renders = append(m.renders, contact.render)
	})
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
	const unixConns = "datakeys_sidecar_connections network=unix"
	const scrapes = "datakeys_sidecar_requests_total path=/metrics code=2xx"
	for { // a request is counted when it is over, which is after its answer
		got, counted := scrape(t, path), 0.0
		delete(got, scrapes)
		delete(got, unixConns) // those that the server closes are there for a while
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

// TestMetricsOfDoors: an outcome is named in words that are known here, whatever a client sends.
func TestMetricsOfDoors(t *testing.T) {
	p := newPod(t, "orders")
	p.put(t, "orders", 1, testPlaintext)
	p.config.LoopbackPort = int(porttest.Reserve(t).Port())
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	blob := p.service.Seal(t, "orders", 1, testPlaintext, nil)
	decrypt := `{"CiphertextBlob":"` + base64.StdEncoding.EncodeToString(blob) + `"}`
	alibaba := func(name string, body []byte) string {
		return postDoor("/", string(body), "x-kms-apiname: "+name, "x-kms-apiversion: dkms-gcs-0.2", "Content-Type: application/x-protobuf")
	}
	message := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), blob)
	host := "localhost:" + strconv.Itoa(p.config.LoopbackPort)
	on := map[string]net.Conn{"unix": dialSocket(t, p.config.Socket), "tcp": dialPort(t, p.config.LoopbackPort)}
	for _, c := range on {
		in := bufio.NewReader(c)
		for _, request := range []string{
			awsRequest("Decrypt", decrypt), awsRequest("Decrypt", "{}"),
			awsRequest("CreateKey", "{}"), awsRequest("Decrypt2", "{}"), awsRequest("Decrypt\",code=\"OK", "{}"),
			alibaba("AdvanceDecrypt", message), alibaba("Decrypt", message), alibaba("Sign", nil), alibaba("Invented", nil),
			postDoor("/", "", "x-y: z"),
			postDoor("/kms", ""), // not for a door, and by then all before it are counted
		} {
			request = strings.Replace(strings.Replace(request, "kms.eu-central-1.amazonaws.com", host, 1), "localhost\r", host+"\r", 1)
			write(t, c, request)
			readReply(t, in, http.MethodPost)
		}
	}
	got := scrape(t, p.config.Socket)
	const name = "datakeys_sidecar_door_requests_total"
	maps.DeleteFunc(got, func(series string, _ float64) bool {
		return !strings.HasPrefix(series, name) && series != "datakeys_sidecar_connections network=tcp"
	})
	want := map[string]float64{
		name + " door=aws operation=Decrypt code=OK":                          2,
		name + " door=aws operation=Decrypt code=ValidationException":         2,
		name + " door=aws operation=other code=UnsupportedOperationException": 2,
		name + " door=aws operation=other code=UnknownOperationException":     4,
		name + " door=alibaba operation=AdvanceDecrypt code=OK":               2,
		name + " door=alibaba operation=Decrypt code=MissingParameter":        2,
		name + " door=alibaba operation=Sign code=UnsupportedOperation":       2,
		name + " door=alibaba operation=other code=InvalidApiName":            2,
		name + " door=none operation=other code=UnknownProtocol":              2,
		name + " door=none operation=other code=UnknownPath":                  1, // at the port, where there is nothing else
		"datakeys_sidecar_connections network=tcp":                            1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMetricsOfConnections(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	for range 2 { // which stay open
		roundTrip(t, path, get("/healthz"))
	}
	got := scrape(t, path)
	if got["datakeys_sidecar_connections network=unix"] != 3 || got["datakeys_sidecar_connections network=tcp"] != 0 {
		t.Errorf("got %v", got)
	}
}

// TestCountingAllocatesNothing: it is on the way of each request.
func TestCountingAllocatesNothing(t *testing.T) {
	count := newDoorCounts().of("aws")
	if n := testing.AllocsPerRun(100, func() { count("Decrypt", "OK") }); n != 0 {
		t.Errorf("got %v allocations, want none", n)
	}
}

func BenchmarkDoorCounts(b *testing.B) {
	count := newDoorCounts().of("aws")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			count("Decrypt", "OK")
		}
	})
}

// TestThePageHasEveryMetric, and no other.
func TestThePageHasEveryMetric(t *testing.T) {
	page, err := os.ReadFile("../docs/native-api.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n## Metrics\n")
	table, _, _ = strings.Cut(table, "\n## ")
	told := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\|.*?\|`).FindAllString(table, -1) {
		for _, name := range regexp.MustCompile(`datakeys_sidecar_\w+`).FindAllString(row, -1) {
			told[name] = true
		}
	}
	for name := range help {
		if !told[name] {
			t.Errorf("the page does not have %s", name)
		}
		delete(told, name)
	}
	for name := range told {
		t.Errorf("there is no metric %s", name)
	}
}

// TestContact counts calls over a real connection.
func TestContact(t *testing.T) {
	p := newPod(t, "orders")
	c := newContact()
	client, err := keyservice.New(p.config.KeyService, p.config.Roots, p.config.TokenFile, c.intercept)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	sealed := []keyservice.Sealed{{CiphertextBlob: p.service.Seal(t, "orders", 1, testPlaintext, nil)}}
	counts := func() [4]float64 {
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
