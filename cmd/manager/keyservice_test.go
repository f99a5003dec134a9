package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/datakeys/datakeys/controllers"
)

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
