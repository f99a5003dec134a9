package seal

import (
	"context"
	"fmt"
	"time"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// Action is what is done to the root of trust.
type Action string

// The actions.
const (
	// ActionCreateRootKey: an embedded root key is made.
	ActionCreateRootKey Action = "CreateRootKey"
	// ActionCreateSealingKey: a sealing key is made and wrapped by a root key.
	ActionCreateSealingKey Action = "CreateSealingKey"
	// ActionRotateSealingKey: another sealing key seals from now on.
	ActionRotateSealingKey Action = "RotateSealingKey"
	// ActionWrapSealingKeys: a root key wraps sealing keys that it did not wrap.
	ActionWrapSealingKeys Action = "WrapSealingKeys"
	// ActionRewrapSealingKeys: a root key wraps sealing keys anew.
	ActionRewrapSealingKeys Action = "RewrapSealingKeys"
	// ActionChangeRootKey: the installation relies on another root key from now on.
	ActionChangeRootKey Action = "ChangeRootKey"
	// ActionDropRootKey: what a root key had wrapped is removed, so that it opens nothing any more.
	ActionDropRootKey Action = "DropRootKey"
)

// Change is one thing that is about to be done to the root of trust. It names keys and holds none.
type Change struct {
	Action Action
	// RootKey is the ID of the root key that it is about, empty where it is about all of them.
	RootKey string
	// SealingKey is the version of the sealing key that it is about, 0 where it is about all of them.
	SealingKey uint32
	// Reason says why.
	Reason string
}

// record tells of changes that are about to be written. After an error they must not be.
func (c Config) record(ctx context.Context, changes []Change) error {
	if c.Record == nil {
		return nil
	}
	for _, change := range changes {
		if err := c.Record(ctx, change); err != nil {
			return fmt.Errorf("%s is not done, since it cannot be recorded: %w", change.Action, err)
		}
	}
	return nil
}

// whyRotate says why there is to be another sealing key.
func whyRotate(l *layout) string {
	if requested := rotateRequested(l); requested != "" && requested != l.index.RotateRequestedAt {
		return fmt.Sprintf("asked for by the annotation %s: %s", v1alpha1.AnnotationRotateRequestedAt, requested)
	}
	return "the one before has sealed since " + l.index.PrimarySince.Format(time.RFC3339)
}
