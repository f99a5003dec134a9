package controllerstest

import (
	"strconv"
	"testing"
)

// A Story is what happens to an installation. The write with the number at, from 1, of the process that the story is about
// meets the fault. It says whether that many writes were made.
type Story func(t *testing.T, at int, fault Fault) (reached bool)

// AtEveryWrite tells a story for each fault and every write, until it ends without having made that many writes. It fails the
// test where there are fewer writes than least, since the story is not told then, or more than most.
func AtEveryWrite(t *testing.T, faults map[string]Fault, least, most int, tell Story) {
	t.Helper()
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			writes := 0
			for {
				at, reached := writes+1, false
				if !t.Run("at write "+strconv.Itoa(at), func(t *testing.T) { reached = tell(t, at, fault) }) {
					return // the others would most likely fail alike
				}
				if !reached {
					break
				}
				if writes++; writes > most {
					t.Fatal("the writes have no end")
				}
			}
			if writes < least {
				t.Errorf("only %d writes were made: the story is not told", writes)
			}
			t.Logf("%d points", writes)
		})
	}
}

// Restart lets one process come after the other: once the process of f has died, next ends it and starts another, whose Faults
// it returns, and so on with that one. next gets what HandOver of the last returns. It goes on until the test ends or settle is
// called, which returns when a process runs that meets no fault any more, and hands over from there.
func (f *Faults) Restart(t testing.TB, next func(rest *Faults) *Faults) (settle func() (rest *Faults)) {
	t.Helper()
	var rest *Faults
	settled, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for alive := f; ; {
			select {
			case <-alive.Died():
			case <-settled:
				if rest = alive.HandOver(); !alive.doomed() {
					return
				}
				<-alive.Died()
			case <-t.Context().Done():
				return
			}
			alive = next(alive.HandOver())
		}
	}()
	t.Cleanup(func() { <-ended })
	return func() *Faults {
		close(settled)
		<-ended
		return rest
	}
}
