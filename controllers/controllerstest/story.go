package controllerstest

import (
	"strconv"
	"testing"
)

// A Story is what happens to an installation. The write with the number at, from 1, of the process that the story is about
// meets the fault. It says whether that many writes were made.
type Story func(t *testing.T, at int, fault Fault) (reached bool)

// AtEveryWrite tells a story for every fault and every write, until it ends without having made that many writes. It fails the
// test where there are fewer writes than least, since the story is not told then, or more than most.
func AtEveryWrite(t *testing.T, least, most int, tell Story) {
	t.Helper()
	for name, fault := range AllFaults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			writes := 0
			for {
				at, reached := writes+1, true
				t.Run("at write "+strconv.Itoa(at), func(t *testing.T) { reached = tell(t, at, fault) })
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
// it returns; and so on with that one. It goes on until the test ends, or until stop is called and has returned.
func (f *Faults) Restart(t testing.TB, next func() *Faults) (stop func()) {
	t.Helper()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for alive := f; ; {
			select {
			case <-alive.Died():
				alive = next()
			case <-end:
				return
			case <-t.Context().Done():
				return
			}
		}
	}()
	t.Cleanup(func() { <-ended })
	return func() {
		select {
		case <-ended:
		default:
			close(end)
			<-ended
		}
	}
}
