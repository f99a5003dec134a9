package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

const (
	// rescanInterval is how long the leader does not look at the material of master keys again that it found sealed by the
	// primary sealing key. A key that another manager made while the sealing key was rotated is found then.
	rescanInterval = 24 * time.Hour
	// retryInterval is the same where something could not be sealed anew.
	retryInterval = 10 * time.Minute
	// resealTries is how often a Secret is read again that others write to at the same time.
	resealTries = 5
	// progressEvery is after how many Secrets the log says how far it is.
	progressEvery = 500
)

// resealing is what the leader remembers of its last pass over the material of all master keys.
type resealing struct {
	mu      sync.Mutex // one pass at a time
	primary uint32     // the version of the sealing key by which everything was sealed then
	next    time.Time  // when to look again
	problem error      // what the pass returned
}

// TendSeal does what there is to do about the root key and the sealing key: every replica learns what others did and goes on
// with a change of the root key. The leader also wraps anew what its root key calls stale, rotates the sealing key where that
// is due (after interval, 0 meaning never, or on demand), and seals by it what older ones had sealed. Where there is nothing
// to do, nothing is written. It is to be called about once a minute; after an error the next call goes on.
func (s *Service) TendSeal(ctx context.Context, leads bool, interval time.Duration) error {
	err := s.seal.Tend(ctx, leads)
	if !leads {
		return err
	}
	s.reseal.mu.Lock()
	defer s.reseal.mu.Unlock()
	due, errDue := s.seal.RotationDue(ctx, interval)
	if errDue != nil {
		return errors.Join(err, errDue)
	}
	if due {
		// First a look at everything: see resealAll.
		if s.reseal.problem == nil {
			s.reseal.next = time.Time{}
		}
		if errRotate := s.resealAll(ctx); errRotate != nil {
			return errors.Join(err, fmt.Errorf("the sealing key is not rotated now: %w", errRotate))
		}
		if errRotate := s.seal.Rotate(ctx, interval); errRotate != nil {
			return errors.Join(err, errRotate)
		}
	}
	return errors.Join(err, s.resealAll(ctx))
}

// resealAll seals the material of every master key by the primary sealing key, one Secret after the other. The error is
// about material that is sealed by a sealing key of this installation that is not in its Secret any more, as after an old
// backup was restored, or that could not be looked at: a new sealing key would then take the number of the lost one, and stand
// in the way of the backup that has it. Material that is damaged is for the restore of its own Secret: it is counted, logged
// and left as it is.
func (s *Service) resealAll(ctx context.Context) error {
	primary := s.seal.Primary()
	if s.reseal.primary == primary && s.clock.Now().Before(s.reseal.next) {
		return s.reseal.problem
	}
	names, err := s.store.List(ctx, v1alpha1.SecretTypeMasterKey)
	if err != nil {
		return fmt.Errorf("listing the Secrets of type %s: %w", v1alpha1.SecretTypeMasterKey, err)
	}
	var unknown error
	resealed, failed := 0, 0
	for i, name := range names {
		s.metrics.sealing.tell(len(names)-i, i-failed, failed)
		wrote, err := s.resealSecret(ctx, name)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errNothingAnew):
			return err
		case errors.Is(err, errSealingKeyUnknown), errors.Is(err, errNotLookedAt):
			unknown = err
			failed++
		default:
			s.log.Error(err, "Master key material is not sealed anew", "secret", name)
			failed++
		}
		if wrote {
			resealed++
			s.metrics.sealing.resealed.Inc()
		}
		if (i+1)%progressEvery == 0 {
			s.log.Info("Looking at the seals of master keys", "done", i+1, "of", len(names), "sealedAnew", resealed, "failed", failed)
		}
	}
	s.metrics.sealing.tell(0, len(names)-failed, failed)
	if resealed > 0 || failed > 0 {
		s.log.Info("Looked at the seals of all master keys", "sealingKey", primary, "secrets", len(names), "sealedAnew", resealed, "failed", failed)
	}
	s.reseal.primary, s.reseal.problem, s.reseal.next = primary, unknown, s.clock.Now().Add(rescanInterval)
	if failed > 0 {
		s.reseal.next = s.clock.Now().Add(retryInterval)
	}
	return unknown
}

func (m sealingMetrics) tell(waiting, done, failed int) {
	m.secrets.WithLabelValues(resealWaiting).Set(float64(waiting))
	m.secrets.WithLabelValues(resealDone).Set(float64(done))
	m.secrets.WithLabelValues(resealFailed).Set(float64(failed))
}

var (
	errSealingKeyUnknown = errors.New("sealed by a sealing key that is not there")
	errNotLookedAt       = errors.New("not known to be sealed by a sealing key that is there")
	errNothingAnew       = errors.New("nothing is sealed anew")
)

// resealSecret seals what is in one Secret by the primary sealing key, and reports whether anything had to be. What does not
// open stays as it is.
func (s *Service) resealSecret(ctx context.Context, name string) (wrote bool, err error) {
	for range resealTries {
		secret, err := s.store.Get(ctx, name)
		if errors.Is(err, seal.ErrSecretNotFound) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("secret %s is %w: %w", name, errNotLookedAt, err)
		}
		anew, problem := s.resealEntries(ctx, secret)
		if len(anew) == 0 {
			return false, problem
		}
		// After an old backup of the sealing keys was restored, the primary one may be in the memory of running managers alone.
		// What is in the Secret opens without them: it is not to be replaced by what does not.
		if err := s.seal.CheckStored(ctx); err != nil {
			return false, fmt.Errorf("%w: %w", errNothingAnew, err)
		}
		record := AuditRecord{Operation: OperationResealMasterKey, Key: &AuditKey{ID: name}}
		for _, sealed := range anew {
			record.SealingKey = s.seal.SealedBy(sealed)
		}
		if err := s.audit(ctx, record); err != nil {
			return false, fmt.Errorf("%w: %w", errNothingAnew, err)
		}
		secret.Data = maps.Clone(secret.Data)
		maps.Copy(secret.Data, anew)
		err = s.store.Update(ctx, secret)
		if errors.Is(err, seal.ErrSecretChanged) {
			continue
		}
		if err != nil {
			return false, errors.Join(problem, fmt.Errorf("writing Secret %s: %w", name, err))
		}
		return true, problem
	}
	return false, fmt.Errorf("writing Secret %s: %w again and again", name, seal.ErrSecretChanged)
}

// resealEntries returns the entries of a Secret that are sealed by another than the primary sealing key, sealed by that.
func (s *Service) resealEntries(ctx context.Context, secret seal.Secret) (anew map[string][]byte, problem error) {
	id, err := envelope.ParseKeyID(secret.Name)
	if err != nil {
		return nil, fmt.Errorf("secret %s of type %s is not named by a key ID", secret.Name, secret.Type)
	}
	anew = map[string][]byte{}
	for _, entry := range slices.Sorted(maps.Keys(secret.Data)) {
		version, ok := seal.ParseVersionEntry(entry)
		if !ok {
			continue
		}
		sealed := secret.Data[entry]
		by := s.seal.SealedBy(sealed)
		if by == s.seal.Primary() {
			continue
		}
		anew[entry], err = s.resealVersion(ctx, id, version, sealed)
		switch {
		case err == nil:
			continue
		case errors.Is(err, envelope.ErrNotMine) && by != 0:
			problem = fmt.Errorf("entry %s of Secret %s is %w, %d: restore Secret %s from a backup made after the last rotation",
				entry, secret.Name, errSealingKeyUnknown, by, seal.SealingKeysSecret)
		case !unopenable(err) && !errors.Is(problem, errSealingKeyUnknown):
			problem = fmt.Errorf("entry %s of Secret %s is %w: %w", entry, secret.Name, errNotLookedAt, err)
		case problem == nil:
			problem = fmt.Errorf("entry %s of Secret %s: %w", entry, secret.Name, err)
		}
		delete(anew, entry)
	}
	return anew, problem
}

// resealVersion seals one version anew, and makes sure that it opens as what it was.
func (s *Service) resealVersion(ctx context.Context, id envelope.KeyID, version uint32, sealed []byte) ([]byte, error) {
	of, materialID, m, err := s.seal.Unseal(ctx, id, version, sealed)
	if err != nil {
		return nil, err
	}
	defer m.Destroy()
	anew, err := s.seal.Seal(of, materialID, m)
	if err != nil {
		return nil, err
	}
	gotOf, gotID, got, err := s.seal.Unseal(ctx, id, version, anew)
	if err != nil {
		return nil, err
	}
	defer got.Destroy()
	if gotOf != of || gotID != materialID || !got.Equal(m) {
		return nil, errors.New("internal error: what was sealed anew does not open as what it was")
	}
	return anew, nil
}
