package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
)

// unsealBackoff is how the root key is tried at start: soon at first, then every half minute for as long as it takes.
var unsealBackoff = wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 8, Cap: 30 * time.Second}

// drainTimeout is how long answers that are under way may take when the manager ends.
const drainTimeout = 10 * time.Second

// errSealed is what health checks are told until the root key has opened the sealing keys.
var errSealed = errors.New("the key service is still being unsealed")

// keyService runs the key service on every replica, and is what the controllers see of it. It unseals first. Until then it is
// not ready, and the controllers' calls wait: an error would turn every object not Ready at each restart.
type keyService struct {
	seal seal.Config
	// config is the key service's, but for the seal.
	config kms.Config
	listen func(context.Context) (net.Listener, error)
	serve  func(*kms.Service) *grpc.Server
	log    logr.Logger

	// unsealed is closed once service is set, and service is read after that only.
	unsealed chan struct{}
	service  *kms.Service
	keyring  *seal.Keyring
}

var (
	_ manager.Runnable               = (*keyService)(nil)
	_ manager.LeaderElectionRunnable = (*keyService)(nil)
	_ controllers.KeyService         = (*keyService)(nil)
)

// NeedLeaderElection says that every replica answers sidecars.
func (*keyService) NeedLeaderElection() bool { return false }

// Start unseals, serves, and returns when the context ends.
func (k *keyService) Start(ctx context.Context) error {
	if err := k.unseal(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // the manager ends before it was unsealed: there is nothing to stop
		}
		return err
	}
	defer k.keyring.Close()
	listener, err := k.listen(ctx)
	if err != nil {
		return fmt.Errorf("listen for the key service: %w", err)
	}
	server := k.serve(k.service)
	k.log.Info("Serving keys", "address", listener.Addr().String())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		force := time.AfterFunc(drainTimeout, server.Stop)
		defer force.Stop()
		server.GracefulStop()
	}()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve keys: %w", err)
	}
	<-stopped
	return nil
}

// unseal opens the sealing keys and makes the service. It goes on until it succeeds or the context ends.
func (k *keyService) unseal(ctx context.Context) error {
	return unsealBackoff.DelayFunc().Until(ctx, true, true, func(ctx context.Context) (bool, error) {
		keyring, err := k.seal.Open(ctx)
		if err != nil {
			k.log.Error(err, "The sealing keys cannot be opened, trying again")
			return false, nil
		}
		config := k.config
		config.Seal = keyring
		service, err := kms.New(config)
		if err != nil {
			keyring.Close()
			return false, err
		}
		k.keyring = keyring
		k.service = service
		close(k.unsealed)
		k.log.Info("Unsealed", "rootKeyEmbedded", keyring.Report().Embedded)
		return true, nil
	})
}

// Ready is a health check: the key service is unsealed.
func (k *keyService) Ready(*http.Request) error {
	select {
	case <-k.unsealed:
		return nil
	default:
		return errSealed
	}
}

// wait returns the key service once it is unsealed.
func (k *keyService) wait(ctx context.Context) (*kms.Service, error) {
	select {
	case <-k.unsealed:
		return k.service, nil
	case <-ctx.Done():
		return nil, errors.Join(errSealed, context.Cause(ctx))
	}
}

// openAudit opens where audit records go. A file is only ever appended to.
func openAudit(path string) (io.WriteCloser, error) {
	if path == "-" {
		return os.Stdout, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("--audit-log: %w", err)
	}
	return f, nil
}

// What follows is the controllers' view: their types, sealed bytes only.

// EnsureMasterKey implements controllers.KeyService.
func (k *keyService) EnsureMasterKey(
	ctx context.Context, key controllers.MasterKeyRef, terms controllers.DeletionTerms, rotateRequestedAt string,
) (controllers.MasterKeyInfo, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.MasterKeyInfo, error) {
		info, err := s.EnsureMasterKey(ctx, kms.MasterKeyRef(key), kms.DeletionTerms(terms), rotateRequestedAt)
		return masterKeyInfo(info), err
	})
}

// MasterKey implements controllers.KeyService.
func (k *keyService) MasterKey(ctx context.Context, key controllers.MasterKeyRef) (controllers.MasterKeyInfo, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.MasterKeyInfo, error) {
		info, err := s.MasterKey(ctx, kms.MasterKeyRef(key))
		return masterKeyInfo(info), err
	})
}

// OwnerOf implements controllers.KeyService.
func (k *keyService) OwnerOf(ctx context.Context, keyID string) (ref controllers.MasterKeyRef, info controllers.MasterKeyInfo, err error) {
	info, err = whenUnsealed(ctx, k, func(s *kms.Service) (controllers.MasterKeyInfo, error) {
		owner, info, err := s.OwnerOf(ctx, keyID)
		ref = controllers.MasterKeyRef(owner)
		return masterKeyInfo(info), err
	})
	return ref, info, err
}

// RotateMasterKey implements controllers.KeyService.
func (k *keyService) RotateMasterKey(ctx context.Context, key controllers.MasterKeyRef, from int32, requestedAt string) (controllers.MasterKeyInfo, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.MasterKeyInfo, error) {
		info, err := s.RotateMasterKey(ctx, kms.MasterKeyRef(key), from, requestedAt)
		return masterKeyInfo(info), err
	})
}

// RecordDeletion implements controllers.KeyService.
func (k *keyService) RecordDeletion(
	ctx context.Context, key controllers.MasterKeyRef, terms controllers.DeletionTerms, began time.Time,
) (controllers.MasterKeyInfo, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.MasterKeyInfo, error) {
		info, err := s.RecordDeletion(ctx, kms.MasterKeyRef(key), kms.DeletionTerms(terms), began)
		return masterKeyInfo(info), err
	})
}

// DestroyMasterKey implements controllers.KeyService.
func (k *keyService) DestroyMasterKey(ctx context.Context, key controllers.MasterKeyRef, now time.Time) error {
	_, err := whenUnsealed(ctx, k, func(s *kms.Service) (struct{}, error) {
		return struct{}{}, s.DestroyMasterKey(ctx, kms.MasterKeyRef(key), now)
	})
	return err
}

// ForgetMasterKey implements controllers.KeyService.
func (k *keyService) ForgetMasterKey(ctx context.Context, keyID string) error {
	_, err := whenUnsealed(ctx, k, func(s *kms.Service) (struct{}, error) { return struct{}{}, s.ForgetMasterKey(ctx, keyID) })
	return err
}

// GenerateDataKeyWithoutPlaintext implements controllers.KeyService.
func (k *keyService) GenerateDataKeyWithoutPlaintext(ctx context.Context, key controllers.DataKey) (controllers.SealedDataKey, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.SealedDataKey, error) {
		sealed, err := s.GenerateDataKeyWithoutPlaintext(ctx, dataKey(key))
		return controllers.SealedDataKey(sealed), err
	})
}

// OpenDataKey implements controllers.KeyService.
func (k *keyService) OpenDataKey(ctx context.Context, key controllers.DataKey, blob []byte) (controllers.SealedDataKey, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.SealedDataKey, error) {
		sealed, err := s.OpenDataKey(ctx, dataKey(key), blob)
		return controllers.SealedDataKey(sealed), err
	})
}

// RewrapDataKey implements controllers.KeyService.
func (k *keyService) RewrapDataKey(ctx context.Context, key controllers.DataKey, blob []byte) (controllers.SealedDataKey, error) {
	return whenUnsealed(ctx, k, func(s *kms.Service) (controllers.SealedDataKey, error) {
		sealed, err := s.RewrapDataKey(ctx, dataKey(key), blob)
		return controllers.SealedDataKey(sealed), err
	})
}

// whenUnsealed calls the key service once it is unsealed, and gives its error the name by which the controllers know it.
func whenUnsealed[T any](ctx context.Context, k *keyService, call func(*kms.Service) (T, error)) (T, error) {
	service, err := k.wait(ctx)
	if err != nil {
		var none T
		return none, err
	}
	answer, err := call(service)
	return answer, controllersError(err)
}

func dataKey(key controllers.DataKey) kms.DataKey {
	return kms.DataKey{
		MasterKey:         kms.MasterKeyRef(key.MasterKey),
		Namespace:         key.Namespace,
		Name:              key.Name,
		Generation:        key.Generation,
		Length:            key.Length,
		KeyPairSpec:       key.KeyPairSpec,
		EncryptionContext: key.EncryptionContext,
		AAD:               key.AAD,
	}
}

func masterKeyInfo(info kms.MasterKeyInfo) controllers.MasterKeyInfo {
	versions := make([]controllers.MasterKeyVersion, len(info.Versions))
	for i, v := range info.Versions {
		versions[i] = controllers.MasterKeyVersion(v)
	}
	return controllers.MasterKeyInfo{
		ARN:               info.ARN,
		PrimaryVersion:    info.PrimaryVersion,
		PrimarySince:      info.PrimarySince,
		Versions:          versions,
		Created:           info.Created,
		RotateRequestedAt: info.RotateRequestedAt,
		Terms:             controllers.DeletionTerms(info.Terms),
		DeletionTime:      info.DeletionTime,
	}
}

// controllersError gives an error of the key service the sentinel by which the controllers know it.
func controllersError(err error) error {
	for ours, theirs := range map[error]error{
		kms.ErrInvalidKeyID:      controllers.ErrInvalidKeyID,
		kms.ErrMaterialMissing:   controllers.ErrMaterialMissing,
		kms.ErrMaterialConflict:  controllers.ErrMaterialConflict,
		kms.ErrMaterialBroken:    controllers.ErrMaterialBroken,
		kms.ErrMaterialDestroyed: controllers.ErrMaterialDestroyed,
		kms.ErrNotDue:            controllers.ErrNotDue,
		kms.ErrTooManyVersions:   controllers.ErrTooManyVersions,
		kms.ErrKeyVersionMissing: controllers.ErrKeyVersionMissing,
		kms.ErrBlobRefused:       controllers.ErrBlobRefused,
	} {
		if errors.Is(err, ours) {
			return fmt.Errorf("%w: %w", theirs, err)
		}
	}
	if kms.ReasonOf(err) == kmsv1.ReasonUnsupported {
		return fmt.Errorf("%w: %w", controllers.ErrUnsupported, err)
	}
	return err
}
