package keyservice

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// renewalOf is what is asked to renew a blob.
func renewalOf(t *testing.T, blob []byte) Renewal {
	t.Helper()
	b, err := envelope.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	h := b.Header
	return Renewal{KeyID: h.KeyID, KeyVersion: h.KeyVersion, MaterialID: h.MaterialID, Name: h.Scope.Name}
}

func TestClientRenewsEachForItself(t *testing.T) {
	service := sidecartest.NewKeyService(t)
	token := filepath.Join(t.TempDir(), "token")
	writeToken(t, token, "first\n")
	client := newTestClient(t, service.Address, service.Roots, token)
	orders := renewalOf(t, service.Seal(t, "orders", 1, testPlaintext, nil))
	all := []Renewal{orders, renewalOf(t, service.Seal(t, "denied", 1, testPlaintext, nil)), orders, orders, orders}
	all[2].KeyVersion++
	all[3].MaterialID = envelope.NewMaterialID()
	all[4].KeyID = envelope.NewKeyID()
	service.Refuse("denied", codes.PermissionDenied, "may not decrypt datakeyrequests/denied")
	answers, err := client.Renew(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, err := range answers {
		got = append(got, status.Code(err).String())
	}
	if diff := cmp.Diff([]string{"OK", "PermissionDenied", "NotFound", "NotFound", "NotFound"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if m := status.Convert(answers[1]).Message(); m != "may not decrypt datakeyrequests/denied" {
		t.Errorf("message: got %q", m)
	}
	service.Fail(status.Error(codes.Unavailable, "away"))
	if _, err := client.Renew(t.Context(), all); status.Code(err) != codes.Unavailable {
		t.Errorf("in an outage: got %v", err)
	}
}

// oddRenewals answers as no key service should.
type oddRenewals struct {
	kmsv1.KeyServiceClient
	results []*kmsv1.RenewResult
}

func (s oddRenewals) Renew(context.Context, *kmsv1.RenewRequest, ...grpc.CallOption) (*kmsv1.RenewResponse, error) {
	return &kmsv1.RenewResponse{Results: s.results}, nil
}

// What says nothing of a renewal is none.
func TestClientAndOddRenewals(t *testing.T) {
	for name, result := range map[string]*kmsv1.RenewResult{
		"nothing":                    nil,
		"neither":                    {},
		"a refusal with the code OK": {Result: &kmsv1.RenewResult_Refusal{Refusal: &kmsv1.Refusal{}}},
		"a renewal that is none":     {Result: &kmsv1.RenewResult_Renewal{}},
	} {
		t.Run(name, func(t *testing.T) {
			client := &Client{kms: oddRenewals{results: []*kmsv1.RenewResult{result}}}
			answers, err := client.Renew(t.Context(), []Renewal{{}})
			if err != nil || status.Code(answers[0]) != codes.Internal {
				t.Errorf("got %v, %v; want Internal", answers, err)
			}
			if _, err := client.Renew(t.Context(), []Renewal{{}, {}}); status.Code(err) != codes.Internal {
				t.Errorf("one answer about two: got %v, want Internal", err)
			}
		})
	}
}
