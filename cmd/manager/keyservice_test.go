package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// The controllers tell these apart; anything else is tried again.
func TestControllersKnowTheErrorsOfTheKeyService(t *testing.T) {
	for name, c := range map[string]struct{ err, want error }{
		"no key ID":          {kms.ErrInvalidKeyID, controllers.ErrInvalidKeyID},
		"missing material":   {kms.ErrMaterialMissing, controllers.ErrMaterialMissing},
		"another's material": {kms.ErrMaterialConflict, controllers.ErrMaterialConflict},
		"broken material":    {kms.ErrMaterialBroken, controllers.ErrMaterialBroken},
		"destroyed material": {kms.ErrMaterialDestroyed, controllers.ErrMaterialDestroyed},
		"another's blob":     {kms.ErrBlobRefused, controllers.ErrBlobRefused},
		"a lost version":     {kms.ErrKeyVersionMissing, controllers.ErrKeyVersionMissing},
		"too many versions":  {kms.ErrTooManyVersions, controllers.ErrTooManyVersions},
		"not due":            {kms.ErrNotDue, controllers.ErrNotDue},
		"a kind of key pair that is not offered": {
			&kms.Error{Code: kms.CodeInvalidArgument, Reason: kmsv1.ReasonUnsupported}, controllers.ErrUnsupported,
		},
	} {
		if got := controllersError(fmt.Errorf("wrapped: %w", c.err)); !errors.Is(got, c.want) || !errors.Is(got, c.err) {
			t.Errorf("%s: got %v, want it to be %v and %v", name, got, c.want, c.err)
		}
	}
	for _, other := range []error{nil, &kms.Error{Code: kms.CodeInvalidArgument}, errors.New("down")} {
		if got := controllersError(other); got != other {
			t.Errorf("got %v, want %v as it is", got, other)
		}
	}
}

// A leader that was just started must not take a key service that is not unsealed yet for one that has lost its keys.
func TestControllersWaitForTheUnsealing(t *testing.T) {
	calls := map[string]func(context.Context, *keyService) error{
		"EnsureMasterKey": func(ctx context.Context, k *keyService) error {
			_, err := k.EnsureMasterKey(ctx, controllers.MasterKeyRef{}, controllers.DeletionTerms{}, "")
			return err
		},
		"MasterKey": func(ctx context.Context, k *keyService) error {
			_, err := k.MasterKey(ctx, controllers.MasterKeyRef{})
			return err
		},
		"OwnerOf": func(ctx context.Context, k *keyService) error {
			_, _, err := k.OwnerOf(ctx, "")
			return err
		},
		"RotateMasterKey": func(ctx context.Context, k *keyService) error {
			_, err := k.RotateMasterKey(ctx, controllers.MasterKeyRef{}, 1, "")
			return err
		},
		"RecordDeletion": func(ctx context.Context, k *keyService) error {
			_, err := k.RecordDeletion(ctx, controllers.MasterKeyRef{}, controllers.DeletionTerms{}, time.Time{})
			return err
		},
		"DestroyMasterKey": func(ctx context.Context, k *keyService) error {
			return k.DestroyMasterKey(ctx, controllers.MasterKeyRef{}, time.Time{})
		},
		"ForgetMasterKey": func(ctx context.Context, k *keyService) error { return k.ForgetMasterKey(ctx, "") },
		"RewrapDataKey": func(ctx context.Context, k *keyService) error {
			_, err := k.RewrapDataKey(ctx, controllers.DataKey{}, nil)
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func(ctx context.Context, k *keyService) error {
			_, err := k.GenerateDataKeyWithoutPlaintext(ctx, controllers.DataKey{})
			return err
		},
		"OpenDataKey": func(ctx context.Context, k *keyService) error {
			_, err := k.OpenDataKey(ctx, controllers.DataKey{}, nil)
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				k := &keyService{unsealed: make(chan struct{})}
				if err := k.Ready(nil); !errors.Is(err, errSealed) {
					t.Errorf("the health check says %v before the unsealing", err)
				}
				answered := make(chan error, 1)
				go func() { answered <- call(ctx, k) }()
				synctest.Wait()
				select {
				case err := <-answered:
					t.Fatalf("answered %v before the unsealing", err)
				default:
				}
				cancel()
				if err := <-answered; !errors.Is(err, errSealed) || !errors.Is(err, context.Canceled) {
					t.Errorf("got %v at the end", err)
				}
			})
		})
	}
}

// What the controllers ask comes to the key service, and what it answers comes back, field by field.
func TestControllersReachTheKeyService(t *testing.T) {
	ctx, store, objects := t.Context(), &sealtest.Store{}, &kmstest.MasterKeys{}
	ring, err := sealtest.OpenEmbedded(ctx, store)
	if err != nil {
		t.Fatal(err)
	}
	service, err := kms.New(kms.Config{
		Seal: ring, Keys: store, MasterKeys: objects,
		Authenticator: &kmstest.Authenticator{}, Authorizer: &kmstest.Authorizer{}, Auditor: &kmstest.Auditor{},
	})
	if err != nil {
		t.Fatal(err)
	}
	k := &keyService{unsealed: make(chan struct{}), service: service}
	close(k.unsealed)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	key := controllers.MasterKeyRef{KeyID: "11111111-1111-4111-8111-111111111111", Namespace: "team-a", Name: "orders"}
	objects.Put(kms.MasterKey{KeyID: key.KeyID, Namespace: key.Namespace, Name: key.Name, State: kms.KeyStateEnabled})
	terms := controllers.DeletionTerms{WaitingPeriod: 200 * time.Hour, OrphanDataKeys: true}
	made, err := k.EnsureMasterKey(ctx, key, terms, "first")
	must(err)
	if made.ARN == "" || made.PrimaryVersion != 1 || !made.Created || made.RotateRequestedAt != "first" || made.Terms != terms {
		t.Errorf("EnsureMasterKey: got %+v", made)
	}
	data := controllers.DataKey{MasterKey: key, Namespace: "team-a", Name: "orders", Generation: 4, Length: 32}
	old, err := k.GenerateDataKeyWithoutPlaintext(ctx, data)
	must(err)
	rotated, err := k.RotateMasterKey(ctx, key, 1, "second")
	must(err)
	want := controllers.MasterKeyInfo{
		ARN: made.ARN, PrimaryVersion: 2, Created: true, RotateRequestedAt: "second", Terms: terms,
		Versions: []controllers.MasterKeyVersion{{Version: 2}, {Version: 1}},
	}
	anyTime := cmpopts.IgnoreTypes(time.Time{})
	if diff := cmp.Diff(want, rotated, anyTime); diff != "" || rotated.PrimarySince.IsZero() || rotated.Versions[0].CreatedAt.IsZero() {
		t.Errorf("RotateMasterKey: %s, %+v", diff, rotated)
	}
	data.Generation = 0
	anew, err := k.RewrapDataKey(ctx, data, old.CiphertextBlob)
	must(err)
	opened, err := k.OpenDataKey(ctx, data, anew.CiphertextBlob)
	must(err)
	if diff := cmp.Diff(anew, opened); diff != "" || opened.KeyVersion != 2 || opened.Generation != 4 || len(opened.IV) == 0 {
		t.Errorf("RewrapDataKey: %s, %+v", diff, opened)
	}
	began := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	scheduled, err := k.RecordDeletion(ctx, key, terms, began)
	must(err)
	due := began.Add(200 * time.Hour)
	if want.Created, want.DeletionTime = false, due; !scheduled.DeletionTime.Equal(due) {
		t.Errorf("RecordDeletion: got %+v", scheduled)
	}
	owner, info, err := k.OwnerOf(ctx, key.KeyID)
	must(err)
	if diff := cmp.Diff(scheduled, info); diff != "" || owner != key {
		t.Errorf("OwnerOf: got %+v, %s", owner, diff)
	}
	if err := k.DestroyMasterKey(ctx, key, due.Add(-time.Second)); !errors.Is(err, controllers.ErrNotDue) {
		t.Errorf("DestroyMasterKey: got %v, want ErrNotDue", err)
	}
	must(k.DestroyMasterKey(ctx, key, due))
	if owner, _, err := k.OwnerOf(ctx, key.KeyID); !errors.Is(err, controllers.ErrMaterialDestroyed) || owner != key {
		t.Errorf("OwnerOf a destroyed key: got %+v, %v", owner, err)
	}
	must(k.ForgetMasterKey(ctx, key.KeyID))
	if _, err := k.MasterKey(ctx, key); !errors.Is(err, controllers.ErrMaterialMissing) {
		t.Errorf("MasterKey: got %v, want ErrMaterialMissing", err)
	}
}

// Who is about to get an answer when the manager ends gets it, and the key service ends only then.
func TestACallUnderWayIsAnsweredAtTheEnd(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	slow := grpc.MethodDesc{MethodName: "Slow", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(new(emptypb.Empty)); err != nil {
			return nil, err
		}
		close(began)
		<-release
		return new(emptypb.Empty), nil
	}}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	store := &sealtest.Store{}
	k := &keyService{
		seal: seal.Config{RootKey: seal.DefaultRootKey, Store: store},
		config: kms.Config{
			Keys: store, MasterKeys: &kmstest.MasterKeys{},
			Authenticator: &kmstest.Authenticator{}, Authorizer: &kmstest.Authorizer{}, Auditor: &kmstest.Auditor{},
		},
		listen: func(context.Context) (net.Listener, error) { return listener, nil },
		serve: func(*kms.Service) *grpc.Server {
			server := grpc.NewServer()
			server.RegisterService(&grpc.ServiceDesc{ServiceName: "test", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{slow}}, struct{}{})
			return server
		},
		log: logr.Discard(), unsealed: make(chan struct{}),
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Start(ctx) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	answered := make(chan error, 1)
	go func() { answered <- conn.Invoke(t.Context(), "/test/Slow", new(emptypb.Empty), new(emptypb.Empty)) }()
	<-began
	end()
	conn.WaitForStateChange(t.Context(), connectivity.Ready) // the server has said that it goes
	select {
	case err := <-ended:
		t.Errorf("the key service ended before the call: %v", err)
	default:
	}
	close(release)
	if err := <-answered; err != nil {
		t.Errorf("the call: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the key service: %v", err)
	}
}
