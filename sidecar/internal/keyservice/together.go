package keyservice

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// decryptFlights is how many calls for plaintexts are under way at once before others wait for them. See BenchmarkDecrypt.
const decryptFlights = 2

const (
	// slowFlight is how long a Decrypt waits for those that are under way before another flight is begun for it. What holds one up, such as
	// a key that has to be looked for, need not hold up others. It is many times what a flight takes.
	slowFlight = 100 * time.Millisecond
	// mostFlights is how many there are at most by that. It leaves turns for calls of other kinds.
	mostFlights = doorCalls - 2
)

// together is a client of the key service with which Decrypts that wait together travel together: while decryptFlights calls are
// under way, those that come gather, and the next call takes them all along as a BatchDecrypt. Where no more than that come at once,
// each is a call of its own and nothing waits. Where more come, there is one call at a time: a second would leave with the first of
// those who are still on their way.
type together struct {
	kmsv1.KeyServiceClient

	mu      sync.Mutex
	flights int
	last    int           // how many the last flight took along
	waiting []*decryption // the oldest first
}

// decryption is a Decrypt that waits for its answer.
type decryption struct {
	request *kmsv1.DecryptRequest
	size    int

	// What follows is set under together's mutex.
	response *kmsv1.DecryptResponse
	err      error
	answered chan struct{} // closed once there is an answer
	left     bool          // nobody waits any more
	flight   *flight       // nil before there is one
}

// flight is a call that takes decryptions along. Under together's mutex too.
type flight struct {
	aboard int // those who wait
	end    context.CancelFunc
}

func newTogether(service kmsv1.KeyServiceClient) *together {
	return &together{KeyServiceClient: service}
}

// Decrypt implements kmsv1.KeyServiceClient. Who calls with options of his own travels alone.
func (t *together) Decrypt(ctx context.Context, r *kmsv1.DecryptRequest, opts ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	if len(opts) > 0 {
		return t.KeyServiceClient.Decrypt(ctx, r, opts...)
	}
	if d := t.depart(r); d != nil {
		return t.wait(ctx, d)
	}
	runtime.Gosched() // whoever comes at the same moment comes along
	if d := t.join(r); d != nil {
		t.land(ctx)
		return t.wait(ctx, d)
	}
	defer t.land(ctx)
	return t.KeyServiceClient.Decrypt(ctx, r)
}

// depart begins a flight. Where there is none left the request waits, and depart returns it.
func (t *together) depart(r *kmsv1.DecryptRequest) *decryption {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flights >= t.mostLocked() {
		return t.queueLocked(r)
	}
	t.flights++
	t.last = 1
	return nil
}

// mostLocked is how many flights there may be.
func (t *together) mostLocked() int {
	if t.last > 1 {
		return 1
	}
	return decryptFlights
}

// join has the request wait with those who wait already. Where nobody does it returns nil.
func (t *together) join(r *kmsv1.DecryptRequest) *decryption {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		return nil
	}
	return t.queueLocked(r)
}

func (t *together) queueLocked(r *kmsv1.DecryptRequest) *decryption {
	d := &decryption{request: r, size: proto.Size(r), answered: make(chan struct{})}
	t.waiting = append(t.waiting, d)
	return d
}

// wait waits for the answer, which every flight gives in CallTimeout.
func (t *together) wait(ctx context.Context, d *decryption) (*kmsv1.DecryptResponse, error) {
	late := time.NewTimer(slowFlight)
	defer late.Stop()
	for {
		select {
		case <-d.answered:
			return d.response, d.err
		case <-ctx.Done():
			return t.leave(ctx, d)
		case <-late.C:
			t.overtake(ctx, d)
			late.Reset(slowFlight)
		}
	}
}

// overtake begins another flight, where there is none for d yet.
func (t *together) overtake(ctx context.Context, d *decryption) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flights < mostFlights && slices.Contains(t.waiting, d) {
		t.flights++
		t.begin(ctx, t.boardLocked())
	}
}

// leave ends the waiting for an answer, unless it has just come.
func (t *together) leave(ctx context.Context, d *decryption) (*kmsv1.DecryptResponse, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-d.answered:
		return d.response, d.err
	default:
	}
	d.left = true
	if f := d.flight; f != nil {
		if f.aboard--; f.aboard == 0 {
			f.end() // as a call of his own would
		}
	}
	t.waiting = slices.DeleteFunc(t.waiting, func(other *decryption) bool { return other == d })
	return nil, status.FromContextError(ctx.Err()).Err()
}

// land ends a flight. If others wait, the next one starts; whoever has landed does not wait for it, and does not end it when he leaves.
func (t *together) land(ctx context.Context) {
	if batch := t.board(); batch != nil {
		t.begin(ctx, batch)
	}
}

// begin has a flight start, and those that follow it.
func (t *together) begin(ctx context.Context, batch []*decryption) {
	go func() {
		ctx := context.WithoutCancel(ctx)
		for ; batch != nil; batch = t.board() {
			t.fly(ctx, batch)
		}
	}()
}

// board returns what the next flight of one that has landed takes along, nil where nobody waits: then there is none.
func (t *together) board() []*decryption {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.flights > t.mostLocked() {
		t.flights-- // the other one takes along who waits
		return nil
	}
	return t.boardLocked()
}

func (t *together) boardLocked() []*decryption {
	n, size := 0, 0
	for n < min(len(t.waiting), kmsv1.MaxBatch) && (n == 0 || size+t.waiting[n].size <= maxBatchSize) {
		size += t.waiting[n].size
		n++
	}
	if n == 0 {
		t.flights--
		return nil
	}
	t.last = n
	batch := slices.Clone(t.waiting[:n])
	t.waiting = slices.Delete(t.waiting, 0, n)
	return batch
}

// fly asks for the plaintexts of a batch and hands them out.
func (t *together) fly(ctx context.Context, batch []*decryption) {
	// The doors wait for CallTimeout. The key service, which is told, answers before about what it can.
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	t.take(batch, cancel)
	if len(batch) == 1 {
		response, err := t.KeyServiceClient.Decrypt(ctx, batch[0].request)
		t.answer(batch[0], response, err)
		return
	}
	all := &kmsv1.BatchDecryptRequest{Requests: make([]*kmsv1.DecryptRequest, len(batch))}
	for i, d := range batch {
		all.Requests[i] = d.request
	}
	response, err := t.BatchDecrypt(ctx, all)
	results := response.GetResults()
	switch {
	case err != nil && spoilt(err):
		// One request may have spoilt it for all: it cannot be encoded, or has too much in it.
		var alone sync.WaitGroup
		for _, d := range batch {
			alone.Go(func() { t.fly(ctx, []*decryption{d}) })
		}
		alone.Wait()
		return
	case err == nil && len(results) != len(batch):
		wipe(results)
		err = status.Errorf(codes.Internal, "the key service gave %d answers to %d requests", len(results), len(batch))
	}
	for i, d := range batch {
		switch {
		case err != nil:
			t.answer(d, nil, err)
		case results[i].GetRefusal() != nil:
			t.answer(d, nil, refusalError(results[i].GetRefusal()))
		case results[i].GetResponse() == nil:
			t.answer(d, nil, status.Error(codes.Internal, "the key service gave an empty answer"))
		default:
			t.answer(d, results[i].GetResponse(), nil)
		}
	}
}

// take notes who is aboard of a flight.
func (t *together) take(batch []*decryption, end context.CancelFunc) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &flight{end: end}
	for _, d := range batch {
		if !d.left {
			d.flight = f
			f.aboard++
		}
	}
	if f.aboard == 0 {
		end()
	}
}

// spoilt reports whether a call failed by what was in its request, as gRPC sees it.
func spoilt(err error) bool {
	code := status.Code(err)
	return (code == codes.Internal || code == codes.ResourceExhausted) && !hasReason(err)
}

// answer hands an answer out. A plaintext that nobody waits for any more is wiped.
func (t *together) answer(d *decryption, response *kmsv1.DecryptResponse, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d.response, d.err = response, err
	if d.left {
		clear(response.GetPlaintext())
	}
	close(d.answered)
}
