package seal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// Config is what the sealing keys are opened with. RootKey and Store are required.
type Config struct {
	// RootKey is the URI of the root key.
	RootKey string
	// PreviousRootKey is the URI of the root key that RootKey takes the place of; empty: the root key stays as it is.
	PreviousRootKey string
	Store           Store
	// Clock is the time; nil: the real one.
	Clock clock.PassiveClock
	// Record is told of each change of the root of trust before it is written, which it is not after an error; nil: nobody is.
	// Where several managers are at the same change, each tells of it, and one does it.
	Record func(ctx context.Context, c Change) error
	// Logger is told of every step of a change of the root key or the sealing key. The zero Logger drops it.
	Logger logr.Logger
	// OpenRootKey opens the root keys that are not embedded, as rootkey.Open; nil: there are none. ctx bounds the opening.
	OpenRootKey func(ctx context.Context, uri string, log logr.Logger) (RootKey, error)
}

// Open opens the sealing keys with the root key, or with the previous one where the root key does not wrap them yet. Where
// the installation is new, it makes them. Then it goes as far as it can with a change of the root key. A *SecretError says
// which Secret has to be restored, or which flag is wrong; every other error is worth another try, but for a wrong URI.
func (c Config) Open(ctx context.Context) (*Keyring, error) {
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	k := &Keyring{config: c, turn: make(chan struct{}, 1), opened: map[string][]byte{}, found: map[string]bool{}}
	l, err := readSealingKeys(ctx, c.Store)
	if errors.Is(err, ErrSecretNotFound) {
		l, err = k.install(ctx)
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	k.installID, k.id = l.installID, l.keyID
	for _, tag := range l.tags() {
		k.found[tag] = true
	}
	if err := k.learn(ctx, l); err != nil {
		k.Close()
		return nil, err
	}
	k.judge(l)
	if err := k.Tend(ctx, false); err != nil {
		// It serves, and goes on with the change of its root key later.
		c.Logger.Error(err, "The change of the root key is not done yet")
	}
	return k, nil
}

// readSealingKeys reads the Secret with the sealing keys as it is now.
func readSealingKeys(ctx context.Context, store Store) (*layout, error) {
	s, err := store.Get(ctx, SealingKeysSecret)
	if err != nil {
		return nil, fmt.Errorf("reading Secret %s: %w", SealingKeysSecret, err)
	}
	return readLayout(s)
}

// install makes the first sealing key of a new installation, and returns what is durable: another manager may have been
// quicker.
func (k *Keyring) install(ctx context.Context) (*layout, error) {
	store := k.config.Store
	used, err := store.Any(ctx, v1alpha1.SecretTypeMasterKey)
	if err != nil {
		return nil, fmt.Errorf("looking for Secrets of type %s: %w", v1alpha1.SecretTypeMasterKey, err)
	}
	if used {
		return nil, &SecretError{
			Secret:  SealingKeysSecret,
			Problem: "is missing, but there are Secrets of type " + v1alpha1.SecretTypeMasterKey + " sealed under it",
			Remedy:  "restore it from a backup; no new sealing key is made, because it could open nothing",
		}
	}
	root, err := k.config.openRootKey(ctx, k.config.RootKey, true)
	if err != nil {
		return nil, err
	}
	k.current = root
	s, err := k.firstSecret(ctx, root)
	if err != nil {
		return nil, fmt.Errorf("making Secret %s: %w", SealingKeysSecret, err)
	}
	if err := k.config.record(ctx, []Change{{Action: ActionCreateSealingKey, RootKey: root.ID(), SealingKey: 1, Reason: whyInstall}}); err != nil {
		return nil, err
	}
	if err := store.Create(ctx, s); err != nil && !errors.Is(err, ErrSecretExists) {
		return nil, fmt.Errorf("making Secret %s: %w", SealingKeysSecret, err)
	}
	return readSealingKeys(ctx, store)
}

const whyInstall = "the installation is new"

func (k *Keyring) firstSecret(ctx context.Context, root RootKey) (Secret, error) {
	var random [6]byte
	rand.Read(random[:])
	installID, id := hex.EncodeToString(random[:]), envelope.NewKeyID()

	sk := sealingKey{envelope.NewMaterialID(), envelope.NewMaterial()}
	defer sk.material.Destroy()
	wrapped, err := wrap(ctx, root, sk, binding(id, 1, installID))
	if err != nil {
		return Secret{}, err
	}
	tag := tagOf(root.ID())
	indexJSON, err := json.Marshal(index{
		Primary: 1, PrimarySince: k.config.Clock.Now().UTC(), SettledOn: tag,
		RootKeys: map[string]listedRootKey{tag: {ID: root.ID(), URI: k.config.RootKey}},
	})
	if err != nil {
		return Secret{}, err
	}
	return Secret{
		Name:   SealingKeysSecret,
		Type:   v1alpha1.SecretTypeSealingKeys,
		Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		Data: map[string][]byte{
			sealingEntryInstallID: []byte(installID),
			sealingEntryKeyID:     []byte(id.String()),
			sealingEntryIndex:     indexJSON,
			wrappedEntry(1, tag):  wrapped,
		},
	}, nil
}
