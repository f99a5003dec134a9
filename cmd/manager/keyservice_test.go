package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/kms"
)

// The controllers tell these apart; anything else is tried again.
func TestControllersKnowTheErrorsOfTheKeyService(t *testing.T) {
	for name, c := range map[string]struct{ err, want error }{
		"no key ID":          {kms.ErrInvalidKeyID, controllers.ErrInvalidKeyID},
		"missing material":   {kms.ErrMaterialMissing, controllers.ErrMaterialMissing},
		"another's material": {kms.ErrMaterialConflict, controllers.ErrMaterialConflict},
		"broken material":    {kms.ErrMaterialBroken, controllers.ErrMaterialBroken},
		"another's blob":     {kms.ErrBlobRefused, controllers.ErrBlobRefused},
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
			_, err := k.EnsureMasterKey(ctx, controllers.MasterKeyRef{})
			return err
		},
		"MasterKey": func(ctx context.Context, k *keyService) error {
			_, err := k.MasterKey(ctx, controllers.MasterKeyRef{})
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
