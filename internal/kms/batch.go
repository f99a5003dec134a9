package kms

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// batchWorkers is how many items of a batch are worked on at once: each may wait for a review of its own.
const batchWorkers = 8

// BatchDecryptResult is what one request of a batch came to: a response, or an error.
type BatchDecryptResult struct {
	Response DecryptResponse
	Err      error
}

// BatchDecrypt opens 1 to 100 blobs, each as Decrypt would. About the same access RBAC is asked once. Only what concerns the
// whole call is returned as an error.
func (s *Service) BatchDecrypt(ctx context.Context, caller Caller, reqs []DecryptRequest) (results []BatchDecryptResult, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationBatchDecrypt, start, caller, err) }()
	if err := s.checkBatch(OperationBatchDecrypt, caller, "requests", len(reqs)); err != nil {
		return nil, err
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	review := s.batchReviewer(caller)
	results = make([]BatchDecryptResult, len(reqs))
	inBatch(len(reqs), func(i int) { results[i] = s.decryptItem(ctx, review, reqs[i]) })
	return results, nil
}

// checkBatch checks how many items the field of a batch has, and charges for them.
func (s *Service) checkBatch(operation string, caller Caller, field string, n int) error {
	if n < 1 || n > kmsv1.MaxBatch {
		return invalid(field, fmt.Errorf("must be 1 to %d, not %d", kmsv1.MaxBatch, n))
	}
	s.charge(operation, caller, n-1)
	return nil
}

// inTime bounds the work on the items of a batch to three quarters of the time that its caller waits. An item whose turn at the API server
// does not come can be tried again then, and the answers about the others are not lost with it.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, time.Until(deadline)*3/4, errOutOfTime)
}

// errOutOfTime is why an item of a batch ends whose caller still waits.
var errOutOfTime = errors.New("an item of a batch took too long")

// inBatch works on n items, in goroutines: a panic of work would end the process. Each takes one item after the other: what opens a blob
// first has to have its stack grow.
func inBatch(n int, work func(i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(n, batchWorkers) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				work(i)
			}
		})
	}
	all.Wait()
}

func (s *Service) decryptItem(ctx context.Context, review *reviewer, req DecryptRequest) (result BatchDecryptResult) {
	start := s.Now()
	defer func() {
		if p := recover(); p != nil {
			result = BatchDecryptResult{Err: PanicError(p)}
		}
		s.done(ctx, OperationDecrypt, start, review.caller, result.Err)
	}()
	src, err := s.checkDecrypt(req)
	if err != nil {
		return BatchDecryptResult{Err: err}
	}
	resp, err := s.decrypt(ctx, review, &src, req.DryRun)
	return BatchDecryptResult{Response: resp, Err: err}
}
