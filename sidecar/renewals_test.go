package sidecar

import (
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// A whole sidecar, at a key service over the network: the application finds out by itself that it is refused.
func TestRunEndsADataKeyThatIsRefused(t *testing.T) {
	p := newPod(t, "orders")
	p.config.Leases = Leases{Lease: MinLease}
	p.put(t, "orders", 1, testPlaintext)
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	events := openStream(t, p.config.Socket, get(ordersEvents))
	events.wants(t, "retry: 1000", generationEvent("generation", 1))
	p.service.Refuse("orders", codes.FailedPrecondition, "because")
	events.wants(t, revokedEvent("1-MasterKeyState", keystore.StateRefused, keystore.ReasonMasterKeyState))
	if status, _ := p.key(t, "orders"); status != http.StatusForbidden {
		t.Errorf("got %d, want 403", status)
	}
	if got := p.service.Renewed(); got != 1 {
		t.Errorf("%d calls renewed, want one", got)
	}
}
