package seal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// recorded lives through the stages. It returns each change as text, and an error for the first write that none was told of
// since the write before.
func (i *installation) recorded(t *testing.T, stages []stage) (changes []string, unrecorded error) {
	t.Helper()
	told := false
	record := func(_ context.Context, c seal.Change) error {
		told = true
		name, _, _ := strings.Cut(c.RootKey, "#") // the ID of an embedded root key is random
		changes = append(changes, fmt.Sprintf("%s %s %d: %s", c.Action, name, c.SealingKey, c.Reason))
		return nil
	}
	i.store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Create || c.Method == sealtest.Update {
			if !told && unrecorded == nil {
				unrecorded = fmt.Errorf("%s of Secret %s was told to nobody, after %q", c.Method, c.Name, changes)
			}
			told = false
		}
		return sealtest.None
	}
	for n, s := range stages {
		i.begin(n, s)
		config := i.config(s)
		config.Record = record
		k, err := config.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(k.Tend(t.Context(), true), k.Rotate(t.Context(), 0)); err != nil {
			t.Fatal(err)
		}
		k.Close()
	}
	return changes, unrecorded
}

func TestChangesOfTheRootOfTrustAreTold(t *testing.T) {
	i := newInstallation()
	got, err := i.recorded(t, []stage{
		{root: seal.DefaultRootKey},
		{root: seal.DefaultRootKey, rotate: true},
		{root: "fake://kmsv2", previous: seal.DefaultRootKey},
		{root: "fake://kmsv2"},
		{root: "fake://kmsv2", stale: true},
	})
	if err != nil {
		t.Error(err)
	}
	var replaced string
	for n, change := range got { // the ID of an embedded root key is random
		if before, id, found := strings.Cut(change, "in the place of secret://datakeys-root-key#"); found {
			replaced, got[n] = id, before+"in the place of the embedded one"
		}
	}
	if len(replaced) != 36 {
		t.Errorf("the change of the root key does not name the one before, but %q", replaced)
	}
	const asked = "asked for by the annotation datakeys.io/rotate-requested-at: 1"
	want := []string{
		"CreateRootKey secret://datakeys-root-key 0: there is none of that name",
		"CreateSealingKey secret://datakeys-root-key 1: the installation is new",
		"CreateSealingKey  2: " + asked,
		"RotateSealingKey  2: " + asked,
		"WrapSealingKeys fake://kmsv2 0: it does not wrap all of them yet",
		"ChangeRootKey fake://kmsv2 0: in the place of the embedded one",
		"DropRootKey secret://datakeys-root-key 0: the installation relies on fake://kmsv2, and no previous root key is set",
		"RewrapSealingKeys fake://kmsv2 0: it was rotated behind its name",
		"RewrapSealingKeys fake://kmsv2 0: what it wrapped anew was read back, and takes the place of the old where it opens",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestARotationByTimeSaysSo(t *testing.T) {
	i := newInstallation()
	var got []string
	config := i.config(stage{root: seal.DefaultRootKey})
	config.Record = func(_ context.Context, c seal.Change) error {
		got = append(got, fmt.Sprintf("%s %d: %s", c.Action, c.SealingKey, c.Reason))
		return nil
	}
	k, err := config.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	got = nil
	i.clock.SetTime(i.clock.Now().Add(time.Hour))
	if err := k.Rotate(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"CreateSealingKey 2: the one before has sealed since 2026-11-22T00:00:00Z",
		"RotateSealingKey 2: the one before has sealed since 2026-11-22T00:00:00Z",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestEveryWriteOfALifeIsTold(t *testing.T) {
	if _, err := newInstallation().recorded(t, story()); err != nil {
		t.Error(err)
	}
}

// What cannot be told is not done, and is done once it can be.
func TestWhatCannotBeToldIsNotDone(t *testing.T) {
	i := newInstallation()
	errFull := errors.New("the disk is full")
	full := true
	record := func(context.Context, seal.Change) error {
		if full {
			return errFull
		}
		return nil
	}
	open := func(s stage) (*seal.Keyring, error) {
		config := i.config(s)
		config.Record = record
		return config.Open(t.Context())
	}
	if _, err := open(stage{root: seal.DefaultRootKey}); !errors.Is(err, errFull) || len(i.store.Secrets()) > 0 {
		t.Errorf("a new installation: got %v and %d Secrets, want none", err, len(i.store.Secrets()))
	}
	full = false
	k, err := open(stage{root: seal.DefaultRootKey})
	if err != nil {
		t.Fatal(err)
	}
	k.Close()

	full = true
	before := i.store.Secrets()
	k, err = open(stage{root: "fake://kmsv2", previous: seal.DefaultRootKey})
	if err != nil {
		t.Fatalf("what was there before has to open: %v", err)
	}
	defer k.Close()
	i.seal(t, k)
	if err := k.Tend(t.Context(), true); !errors.Is(err, errFull) {
		t.Errorf("a change of the root key: got %v", err)
	}
	i.clock.SetTime(i.clock.Now().Add(time.Hour))
	if err := k.Rotate(t.Context(), time.Hour); !errors.Is(err, errFull) {
		t.Errorf("a rotation: got %v", err)
	}
	if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
		t.Errorf("something was written:\n%s", diff)
	}
	full = false
	if err := errors.Join(k.Tend(t.Context(), true), i.opens(t.Context(), k)); err != nil || k.Report().Verdict != seal.VerdictKeepsPrevious {
		t.Errorf("afterwards: %v, verdict %s", err, k.Report().Verdict)
	}
}
