package main

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	// modelSequences is how many sequences are tried: what a minute of one processor is enough for.
	modelSequences = 4000
	// modelSteps is how long each of them is.
	modelSteps = 60
)

// Random sequences of whatever may happen to an installation, held to a simple model of what must be true of it. The seeds are 1, 2 and so
// on. A failure prints the seed of its sequence and all that happened; the environment variable DATAKEYS_MODEL_SEED runs that one
// sequence again, and DATAKEYS_MODEL_SEQUENCES says how many are tried.
func TestModel(t *testing.T) {
	t.Parallel()
	set, err := newModelSetUp()
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	first, last := uint64(1), number("DATAKEYS_MODEL_SEQUENCES", modelSequences)
	if seed := number("DATAKEYS_MODEL_SEED", 0); seed != 0 {
		first, last = seed, seed
	}
	var (
		next   atomic.Uint64
		failed atomic.Bool
		group  sync.WaitGroup
	)
	next.Store(first)
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for seed := next.Add(1) - 1; seed <= last && !failed.Load(); seed = next.Add(1) - 1 {
				w := newModelWorld(set, seed)
				w.run(modelSteps)
				if len(w.failures) > 0 {
					failed.Store(true)
					t.Errorf("DATAKEYS_MODEL_SEED=%d: %s\nafter\n%s", seed, w.failures[0], w.story())
				}
				w.reference.destroy()
			}
		})
	}
	group.Wait()
}
