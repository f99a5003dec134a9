package controllerstest

import (
	"context"
	"errors"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// A Fault is what becomes of a write, or of the process that makes it.
type Fault int

// The faults.
const (
	// FailBefore: the write fails.
	FailBefore Fault = iota + 1
	// FailAfter: the write takes effect, and its answer is lost.
	FailAfter
	// DieBefore: the process dies before the write.
	DieBefore
	// DieAfter: the process dies after the write.
	DieAfter
	// Conflict: the write is refused, as one of an object that somebody else has changed since it was read.
	Conflict
)

// AllFaults are the faults by name.
var AllFaults = map[string]Fault{
	"the write fails": FailBefore,
	"the write takes effect and its answer is lost":     FailAfter,
	"the process dies before the write":                 DieBefore,
	"the process dies after the write has taken effect": DieAfter,
	"the write meets a conflict":                        Conflict,
}

// Deaths are those of AllFaults that end the process.
var Deaths = map[string]Fault{
	"the process dies before the write":                 DieBefore,
	"the process dies after the write has taken effect": DieAfter,
}

// Errors of a client with faults.
var (
	ErrInjected = errors.New("injected fault")
	ErrDead     = errors.New("the process is dead")
)

// Faults counts the writes of one process and lets one of them fail. After a death every call fails, as if the process made
// none any more. Wrap every client of the process with the same Faults.
type Faults struct {
	// At is the number of the write that fails, from 1. With 0 none does.
	At int
	// Fault is what happens to it.
	Fault Fault
	// Of are the writes that count, as "verb kind"; empty: all.
	Of string
	// Again is after how many more writes the fault comes again, and so on; 0: it comes once. With 2 every other write meets
	// it: each one that has to be made again is.
	Again int

	mutex   sync.Mutex
	writes  []string
	counted int // of writes
	// effects are the writes that took effect: one from a view that is behind fails by its resourceVersion.
	effects  []string
	underWay sync.RWMutex // read-locked by each write that is under way
	met      int
	died     chan struct{}
	dead     bool
}

// NewFaults lets the write with the number at, from 1, meet a fault.
func NewFaults(at int, fault Fault) *Faults {
	return &Faults{At: at, Fault: fault, died: make(chan struct{})}
}

// CountFrom forgets the writes so far: from now on they count from 1, and the one with the number at meets the fault.
func (f *Faults) CountFrom(at int) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.At, f.writes, f.counted, f.effects = at, nil, 0, nil
}

// Died is closed when the process has died.
func (f *Faults) Died() <-chan struct{} { return f.died }

// Writes are the writes so far, as "verb kind", the failed one included.
func (f *Faults) Writes() []string {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return append([]string(nil), f.writes...)
}

// Effects are the writes so far that took effect, as "verb kind". Those that are under way are waited for.
func (f *Faults) Effects() []string {
	f.underWay.Lock()
	defer f.underWay.Unlock()
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return append([]string(nil), f.effects...)
}

// Met is how many writes have met the fault.
func (f *Faults) Met() int {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.met
}

// Reached says whether the write that was to fail was made.
func (f *Faults) Reached() bool { return f.Met() > 0 }

// HandOver returns the Faults of a process whose writes count on from those of f. If the fault is still to come, it comes to that
// process, and to f's no more.
func (f *Faults) HandOver() *Faults {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	left := f.At - f.counted
	if f.At == 0 || left <= 0 {
		return NewFaults(0, 0)
	}
	f.At = 0
	rest := NewFaults(left, f.Fault)
	rest.Of, rest.Again = f.Of, f.Again
	return rest
}

// doomed reports whether the process has died, or is just about to.
func (f *Faults) doomed() bool {
	return f.Reached() && (f.Fault == DieBefore || f.Fault == DieAfter)
}

func (f *Faults) alive() error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if f.dead {
		return ErrDead
	}
	return nil
}

func (f *Faults) die() error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.dead = true
	close(f.died)
	return ErrDead
}

// write makes a write, or lets it fail.
func (f *Faults) write(what string, do func() error) error {
	if err := f.alive(); err != nil {
		return err
	}
	f.mutex.Lock()
	f.writes = append(f.writes, what)
	counts := f.Of == "" || f.Of == what
	if counts {
		f.counted++
	}
	now := counts && f.counted == f.At
	if now {
		f.met++
		if f.Again > 0 {
			f.At += f.Again
		}
	}
	f.mutex.Unlock()
	if !now {
		f.underWay.RLock()
		defer f.underWay.RUnlock()
		err := do()
		if err == nil {
			f.mutex.Lock()
			f.effects = append(f.effects, what)
			f.mutex.Unlock()
		}
		return err
	}
	switch f.Fault {
	case FailAfter:
		_ = do() // the answer is what is lost
		return ErrInjected
	case DieBefore:
		return f.die()
	case DieAfter:
		_ = do() // nobody is left to hear
		return f.die()
	case Conflict:
		return apierrors.NewConflict(schema.GroupResource{}, what, ErrInjected)
	default:
		return ErrInjected
	}
}

// Wrap gives a client the faults.
func (f *Faults) Wrap(c client.WithWatch) client.WithWatch {
	name := func(verb string, object any) string {
		switch o := object.(type) {
		case client.Object:
			gvk, err := c.GroupVersionKindFor(o)
			if err != nil {
				return verb
			}
			return verb + " " + gvk.Kind
		case interface{ GetKind() *string }:
			if kind := o.GetKind(); kind != nil {
				return verb + " " + *kind
			}
		}
		return verb
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if err := f.alive(); err != nil {
				return err
			}
			return c.Get(ctx, key, object, options...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			if err := f.alive(); err != nil {
				return err
			}
			return c.List(ctx, list, options...)
		},
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			return f.write(name("create", object), func() error { return c.Create(ctx, object, options...) })
		},
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			return f.write(name("update", object), func() error { return c.Update(ctx, object, options...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
			return f.write(name("patch", object), func() error { return c.Patch(ctx, object, patch, options...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
			return f.write(name("delete", object), func() error { return c.Delete(ctx, object, options...) })
		},
		Apply: func(ctx context.Context, c client.WithWatch, object runtime.ApplyConfiguration, options ...client.ApplyOption) error {
			return f.write(name("apply", object), func() error { return c.Apply(ctx, object, options...) })
		},
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, object runtime.ApplyConfiguration, options ...client.SubResourceApplyOption) error {
			return f.write(name("apply "+sub, object), func() error { return c.SubResource(sub).Apply(ctx, object, options...) })
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, object client.Object, options ...client.SubResourceUpdateOption) error {
			return f.write(name("update "+sub, object), func() error { return c.SubResource(sub).Update(ctx, object, options...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
			return f.write(name("patch "+sub, object), func() error { return c.SubResource(sub).Patch(ctx, object, patch, options...) })
		},
	})
}
