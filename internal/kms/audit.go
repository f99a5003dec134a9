package kms

import (
	"context"
	"errors"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Operations, as in audit records and metrics.
const (
	OperationCreateMasterKeyVersion              = "CreateMasterKeyVersion"
	OperationGenerateDataKey                     = "GenerateDataKey"
	OperationGenerateDataKeyWithoutPlaintext     = "GenerateDataKeyWithoutPlaintext"
	OperationOpenDataKey                         = "OpenDataKey"
	OperationGenerateDataKeyPair                 = "GenerateDataKeyPair"
	OperationGenerateDataKeyPairWithoutPlaintext = "GenerateDataKeyPairWithoutPlaintext"
	OperationEncrypt                             = "Encrypt"
	OperationDecrypt                             = "Decrypt"
	OperationBatchDecrypt                        = "BatchDecrypt"
	OperationReEncrypt                           = "ReEncrypt"
	// OperationRenew is a batch of OperationRenewDataKey, of which only what is refused has a record.
	OperationRenew         = "Renew"
	OperationRenewDataKey  = "RenewDataKey"
	OperationRewrapDataKey = "RewrapDataKey"
	// OperationRotateMasterKey: a version of a master key that is durable becomes its primary version.
	OperationRotateMasterKey = "RotateMasterKey"
	// OperationScheduleMasterKeyDeletion: the waiting period of a master key begins, or has other terms; OperationCancelMasterKeyDeletion:
	// it does not go on; OperationUpdateDeletionTerms: it would have other terms if it began.
	OperationScheduleMasterKeyDeletion = "ScheduleMasterKeyDeletion"
	OperationCancelMasterKeyDeletion   = "CancelMasterKeyDeletion"
	OperationUpdateDeletionTerms       = "UpdateDeletionTerms"
	// OperationDestroyMasterKey: all versions of a master key are destroyed. OperationForgetMasterKey: what that left is removed.
	OperationDestroyMasterKey = "DestroyMasterKey"
	OperationForgetMasterKey  = "ForgetMasterKey"
	// OperationResealMasterKey: the material of a master key is sealed anew, by the SealingKey of the record. What else is done
	// to the root of trust has the names of seal.Action.
	OperationResealMasterKey = "ResealMasterKey"
)

// Decisions of audit records.
const (
	// DecisionAllowed: what was asked for is done right after the record is written.
	DecisionAllowed = "allowed"
	// DecisionRefused: nothing was released. Code says why.
	DecisionRefused = "refused"
)

// recordGrace is how long the record of a refusal waits for its turn at least, although its call is over.
const recordGrace = time.Second

// AuditRecord says who asked for what and what became of it. It holds no key and no encryption context.
type AuditRecord struct {
	Time      time.Time `json:"time"`
	Operation string    `json:"operation"`
	Decision  string    `json:"decision"`
	// Code and Reason say why it was refused. Reason is what the caller was told. Of what is done to the root of trust it says
	// why that is done.
	Code   string `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Caller is the pod that asked, or nil for the controllers.
	Caller *AuditCaller `json:"caller,omitempty"`
	// Door is the protocol that the caller spoke; empty for the controllers, and where it means nothing.
	Door string `json:"door,omitempty"`
	// DryRun says that nothing was to be done. Where it would have been, the reason says so.
	DryRun bool `json:"dryRun,omitempty"`
	// Key is the master key. Of a refused blob, it may be only what the blob claims.
	Key *AuditKey `json:"key,omitempty"`
	// SourceKey is, of a ReEncrypt, the master key of the old blob. Key is that of the new one.
	SourceKey *AuditKey `json:"sourceKey,omitempty"`
	// DataKey is the scope of the data key; nil for one that has none.
	DataKey *AuditDataKey `json:"dataKey,omitempty"`
	// Bytes is the length of the plaintext that was made, released or encrypted.
	Bytes int `json:"bytes,omitempty"`
	// RootKey is the ID of a root key, and SealingKey the version of a sealing key, that the record is about.
	RootKey    string `json:"rootKey,omitempty"`
	SealingKey uint32 `json:"sealingKey,omitempty"`
}

// AuditCaller is who asked.
type AuditCaller struct {
	Username       string `json:"username"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	Pod            string `json:"pod"`
	PodUID         string `json:"podUID"`
	Node           string `json:"node,omitempty"`
}

// AuditKey is a version of a master key.
type AuditKey struct {
	// ID is the key ID, or of a key that is not known what the caller called it.
	ID        string `json:"id,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	Version   uint32 `json:"version,omitempty"`
}

// AuditDataKey is the scope of a data key.
type AuditDataKey struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Generation is 0 where it is about all of them.
	Generation uint32 `json:"generation,omitempty"`
}

// Auditor keeps audit records.
type Auditor interface {
	// Record returns nil only when the record is written. What it speaks of leaves the key service afterwards.
	Record(ctx context.Context, r AuditRecord) error
}

// audit writes the record of something that is about to be done. An error means that it must not be.
func (s *Service) audit(ctx context.Context, r AuditRecord) error {
	r.Time, r.Decision = s.Now().UTC(), DecisionAllowed
	if err := s.auditor.Record(ctx, r); err != nil {
		return unavailable(err, "the audit record could not be written")
	}
	return nil
}

// newRecord returns the record of a caller's operation, with a Key to be filled in. All that it points to is one allocation.
func newRecord(operation string, c *Caller, door Door, dryRun bool) *AuditRecord {
	r := &struct {
		AuditRecord
		caller AuditCaller
		key    AuditKey
	}{
		AuditRecord{Operation: operation, Door: door.String(), DryRun: dryRun}, *c.audited(), AuditKey{},
	}
	r.Caller, r.Key = &r.caller, &r.key
	return &r.AuditRecord
}

// refused records a refusal and tells of a denial. Nothing was released, so the refusal stands even where it cannot be
// recorded.
func (s *Service) refused(ctx context.Context, caller Caller, r AuditRecord, cause error) {
	message := "internal error"
	if e, ok := errors.AsType[*Error](cause); ok {
		message = e.Message
	}
	r.Time, r.Decision, r.Code, r.Reason, r.Bytes = s.Now().UTC(), DecisionRefused, CodeOf(cause).String(), message, 0
	if err := s.recordLate(ctx, r); err != nil {
		s.log.Error(err, "Could not record a refusal", "operation", r.Operation, "code", r.Code)
	}
	if CodeOf(cause) == CodeDenied {
		request := ""
		if r.DataKey != nil && r.DataKey.Namespace == caller.Namespace {
			request = r.DataKey.Name
		}
		s.events.Denied(Pod{Namespace: caller.Namespace, Name: caller.PodName, UID: caller.PodUID}, request, message)
	}
}

// recordLate writes a record for a call whose caller may have hung up: he must not get around it. It does not wait for long beyond the
// call's own time, though: a log that takes nothing would keep the call for ever, and with it one of the few that its pod has at once.
func (s *Service) recordLate(ctx context.Context, r AuditRecord) error {
	until := time.Now().Add(recordGrace)
	if deadline, ok := ctx.Deadline(); ok && deadline.After(until) {
		until = deadline
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), until)
	defer cancel()
	return s.auditor.Record(ctx, r)
}

func (c *AuditCaller) pod() Pod { return Pod{Namespace: c.Namespace, Name: c.Pod, UID: c.PodUID} }

func (c Caller) audited() *AuditCaller {
	return &AuditCaller{
		Username:       c.Username,
		Namespace:      c.Namespace,
		ServiceAccount: c.ServiceAccount,
		Pod:            c.PodName,
		PodUID:         c.PodUID,
		Node:           c.Node,
	}
}

// audited names a key in an audit record, with a version if v is not nil.
func (k *key) audited(v *version) AuditKey {
	a := AuditKey{ID: k.text, Namespace: k.namespace, Name: k.name}
	if v != nil {
		a.Version = v.number
	}
	return a
}

func audited(s envelope.Scope) *AuditDataKey {
	if s.IsZero() {
		return nil
	}
	return &AuditDataKey{Namespace: s.Namespace, Name: s.Name, Generation: s.Generation}
}
