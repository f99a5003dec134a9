package seal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// maxClockSkew is how far the clocks of two managers may be apart.
const maxClockSkew = time.Hour

// ErrRotationWaits is what Rotate returns while this manager does not have every root key that wraps the sealing keys.
var ErrRotationWaits = errors.New("the rotation of the sealing key waits")

// RotationDue reports whether the sealing key is to be rotated: it has sealed for as long as interval, 0 meaning for ever, or
// somebody asked for it by the annotation, or a rotation was begun and not finished.
func (k *Keyring) RotationDue(ctx context.Context, interval time.Duration) (bool, error) {
	done, err := k.takeTurn(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	l, err := k.read(ctx)
	if err != nil {
		return false, err
	}
	return l.pending() || k.due(l, interval), nil
}

func (k *Keyring) due(l *layout, interval time.Duration) bool {
	// It cannot have begun to seal in the future: the clock that said so was wrong, and its time may be years away.
	if age := k.config.Clock.Since(l.index.PrimarySince); interval > 0 && (age >= interval || age < -maxClockSkew) {
		return true
	}
	requested := rotateRequested(l)
	return requested != "" && requested != l.index.RotateRequestedAt
}

// rotateRequested is the annotation, cut to a size that fits into the index.
func rotateRequested(l *layout) string {
	return v1alpha1.RequestedAt(l.secret.Annotations[v1alpha1.AnnotationRotateRequestedAt])
}

// Rotate makes a new sealing key where that is due, or finishes what was begun. The new key is durable, read back and opened
// under every root key before anything is sealed by it. The old ones stay: backups need them.
func (k *Keyring) Rotate(ctx context.Context, interval time.Duration) error {
	done, err := k.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	rotated := false
	err = k.write(ctx, func(ctx context.Context, l *layout) (*step, error) {
		switch {
		case l.pending():
			rotated = true
			return k.promote(ctx, l)
		case k.due(l, interval) && !rotated:
			return k.addVersion(ctx, l, l.newest+1)
		}
		return nil, nil
	})
	if err != nil {
		return err
	}
	_, err = k.read(ctx) // from now on this manager seals by it
	return err
}

// roots are all root keys that wrap the sealing keys.
func (k *Keyring) roots(ctx context.Context, l *layout) ([]RootKey, error) {
	var open []RootKey
	if k.openCurrent(ctx, false) == nil {
		open = append(open, k.current)
	}
	if k.config.PreviousRootKey != "" && k.openPrevious(ctx) == nil {
		open = append(open, k.previous)
	}
	var roots []RootKey
	var absent []string
	for _, tag := range l.tags() {
		found := false
		for _, root := range open {
			if tagOf(root.ID()) == tag && !found {
				roots, found = append(roots, root), true
			}
		}
		if !found {
			absent = append(absent, l.index.RootKeys[tag].ID)
		}
	}
	if len(absent) > 0 {
		return nil, fmt.Errorf("%w: the sealing keys are wrapped by %s too, which this manager does not have: finish the change of the root key",
			ErrRotationWaits, strings.Join(absent, " and "))
	}
	return roots, nil
}

// addVersion makes a sealing key under every root key. It seals nothing yet.
func (k *Keyring) addVersion(ctx context.Context, l *layout, version uint32) (*step, error) {
	roots, err := k.roots(ctx, l)
	if err != nil {
		return nil, err
	}
	if err := k.checkNewest(l); err != nil {
		return nil, err
	}
	sk := sealingKey{envelope.NewMaterialID(), envelope.NewMaterial()}
	defer sk.material.Destroy() // it counts once it was read back
	entries := map[string][]byte{}
	for _, root := range roots {
		if entries[wrappedEntry(version, tagOf(root.ID()))], err = wrap(ctx, root, sk, l.binding(version)); err != nil {
			return nil, err
		}
	}
	return l.step(fmt.Sprintf("Made sealing key %d", version), func(data map[string][]byte, _ *index) {
		maps.Copy(data, entries)
	}, Change{Action: ActionCreateSealingKey, SealingKey: version, Reason: whyRotate(l)})
}

// promote lets a new sealing key seal, once it opens as the same key under every root key. One that does not is made anew.
func (k *Keyring) promote(ctx context.Context, l *layout) (*step, error) {
	roots, err := k.roots(ctx, l)
	if err != nil {
		return nil, err
	}
	if err := k.opensAlike(ctx, l, roots); err != nil {
		if _, isFinal := errors.AsType[*SecretError](err); !isFinal {
			return nil, err
		}
		k.config.Logger.Error(err, "A new sealing key does not open, and is made anew")
		return k.addVersion(ctx, l, l.newest)
	}
	return l.step(fmt.Sprintf("Sealing key %d seals from now on: take a new backup of the Secrets of this namespace", l.newest),
		func(_ map[string][]byte, i *index) {
			i.Primary, i.PrimarySince, i.RotateRequestedAt = l.newest, k.config.Clock.Now().UTC(), rotateRequested(l)
		}, Change{Action: ActionRotateSealingKey, SealingKey: l.newest, Reason: whyRotate(l)})
}

// opensAlike makes sure that every root key opens the newest version as the same key.
func (k *Keyring) opensAlike(ctx context.Context, l *layout, roots []RootKey) error {
	_, known := k.keys.Load().versions[l.newest] // an older Secret was put back, and open compares with what is known
	var first sealingKey
	defer func() { first.material.Destroy() }()
	for i, root := range roots {
		sk, err := k.open(ctx, root, l, l.newest)
		switch {
		case err != nil:
			return err
		case known:
			sk.material.Destroy()
			continue
		case i == 0:
			first = sk
			continue
		}
		same := sk.equal(first)
		sk.material.Destroy()
		if !same {
			return &SecretError{
				Secret:  SealingKeysSecret,
				Problem: fmt.Sprintf("has a sealing key %d that opens by root key %s as another one than by %s", l.newest, root.ID(), roots[0].ID()),
				Remedy:  "it has sealed nothing, and is made anew",
			}
		}
	}
	return nil
}
