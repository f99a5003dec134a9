package kms

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

const (
	// maxBatch is the most blobs of one BatchDecrypt.
	maxBatch = 100
	// batchWorkers is how many blobs of a batch are worked on at once: each may wait for a review of its own.
	batchWorkers = 8
)

// BatchDecryptResult is what one request of a batch came to: a response, or an error.
type BatchDecryptResult struct {
	Response DecryptResponse
	Err      error
}

// BatchDecrypt opens 1 to 100 blobs, each as Decrypt would. About the same access RBAC is asked once. Only what concerns the
// whole call is returned as an error.
func (s *Service) BatchDecrypt(ctx context.Context, caller Caller, reqs []DecryptRequest) (results []BatchDecryptResult, err error) {
	start := s.now()
	defer func() { s.done(ctx, OperationBatchDecrypt, start, caller, err) }()
	if len(reqs) < 1 || len(reqs) > maxBatch {
		return nil, invalid("requests", fmt.Errorf("must be 1 to %d, not %d", maxBatch, len(reqs)))
	}
	s.charge(caller, len(reqs)-1)
	review := s.batchReviewer(caller)
	results = make([]BatchDecryptResult, len(reqs))
	var g errgroup.Group
	g.SetLimit(batchWorkers)
	for i, req := range reqs {
		g.Go(func() error {
			results[i] = s.decryptItem(ctx, review, req)
			return nil
		})
	}
	_ = g.Wait() // the workers return no error: each result has its own
	return results, nil
}

func (s *Service) decryptItem(ctx context.Context, review *reviewer, req DecryptRequest) (result BatchDecryptResult) {
	start := s.now()
	defer func() {
		if p := recover(); p != nil { // in a goroutine of its own, where it would end the process
			result = BatchDecryptResult{Err: panicError(p)}
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
