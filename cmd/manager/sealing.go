package main

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
)

// A replica looks at the seal after tendPeriod, made longer at random by up to tendJitter: at least once a minute.
const (
	tendPeriod = 50 * time.Second
	tendJitter = 0.2
)

// sealTender looks after the root key and the sealing key: every replica learns what others did, goes on with a change of
// the root key, and forgets master keys that are gone. A second one, on the leader, rotates the sealing key too.
type sealTender struct {
	service  *keyService
	leads    bool
	interval time.Duration // of rotations; 0: never
	period   time.Duration
	log      logr.Logger
}

var (
	_ manager.Runnable               = (*sealTender)(nil)
	_ manager.LeaderElectionRunnable = (*sealTender)(nil)
)

// NeedLeaderElection says whether it runs on the leader only.
func (s *sealTender) NeedLeaderElection() bool { return s.leads }

// Start waits for the unsealing, and returns when the context ends.
func (s *sealTender) Start(ctx context.Context) error {
	service, err := s.service.wait(ctx)
	if err != nil {
		return nil //nolint:nilerr // the manager ends before it was unsealed
	}
	wait.JitterUntilWithContext(ctx, func(ctx context.Context) {
		if !s.leads { // on every replica, the leader's other one included
			service.ForgetGone(ctx)
		}
		if err := service.TendSeal(ctx, s.leads, s.interval); err != nil && ctx.Err() == nil {
			s.log.Error(err, "The root key or the sealing keys need attention, trying again within a minute")
		}
	}, s.period, tendJitter, true)
	return nil
}

// recordChanges writes what is done to the root of trust to the audit log. There is no caller: it is done by flags, by time, and by an
// annotation, as the reason says.
func recordChanges(auditor kms.Auditor, now clock.PassiveClock) func(context.Context, seal.Change) error {
	return func(ctx context.Context, c seal.Change) error {
		return auditor.Record(ctx, kms.AuditRecord{
			Time: now.Now().UTC(), Operation: string(c.Action), Decision: kms.DecisionAllowed, Reason: c.Reason,
			RootKey: c.RootKey, SealingKey: c.SealingKey,
		})
	}
}
