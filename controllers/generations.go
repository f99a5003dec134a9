package controllers

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// minKept is for how long a generation is kept after it was superseded, whatever spec.rotation.keep says: no pod is without what it
// still needs because a new generation reached it late.
const minKept = 24 * time.Hour

// A generation is one generation of a data key, which opens.
type generation struct {
	sealed    SealedDataKey
	createdAt time.Time
}

func (g generation) number() int32 { return g.sealed.Generation }

// generations are those of a data key, the newest first.
type generations []generation

func (g generations) newest() generation { return g[0] }

// find returns the generation of that number, nil where there is none.
func (g generations) find(number int32) *generation {
	for i := range g {
		if g[i].number() == number {
			return &g[i]
		}
	}
	return nil
}

// findBlob returns the generation of that blob, nil where there is none.
func (g generations) findBlob(blob []byte) *generation {
	for i := range g {
		if bytes.Equal(g[i].sealed.CiphertextBlob, blob) {
			return &g[i]
		}
	}
	return nil
}

// with returns the generations and one more.
func (g generations) with(one generation) generations {
	all := append(slices.Clone(g), one)
	slices.SortFunc(all, func(a, b generation) int { return cmp.Compare(b.number(), a.number()) })
	return all
}

// droppable are the numbers of the generations that keep lets go, which were superseded long enough ago. next is when the next one can be
// dropped, zero for never.
func (g generations) droppable(keep *int32, now time.Time) (numbers []int32, next time.Time) {
	if keep == nil {
		return nil, time.Time{}
	}
	kept := max(int(*keep), 1)
	for i := kept; i < len(g); i++ {
		// One that is dropped has superseded nothing later than the one above it did, whatever its date: it may have been taken over again.
		end := g[kept-1].createdAt.Add(minKept)
		if !now.Before(end) {
			numbers = append(numbers, g[i].number())
			continue
		}
		if next.IsZero() || end.Before(next) {
			next = end
		}
		kept = i + 1
	}
	return numbers, next
}

// without returns the generations but those numbers.
func (g generations) without(numbers []int32) generations {
	return slices.DeleteFunc(slices.Clone(g), func(one generation) bool { return slices.Contains(numbers, one.number()) })
}

// behind are the numbers of the generations that an older version of the master key wraps than the primary one.
func (g generations) behind(primary int32) int {
	n := 0
	for _, one := range g {
		if one.sealed.KeyVersion < primary {
			n++
		}
	}
	return n
}

// oldestVersion is the oldest version of the master key that wraps any of them.
func (g generations) oldestVersion() int32 {
	oldest := g[0].sealed.KeyVersion
	for _, one := range g {
		oldest = min(oldest, one.sealed.KeyVersion)
	}
	return oldest
}

// found is what was found of a data key in one place, its status or its Secret.
type found struct {
	state blobState
	// generations open.
	generations generations
	// broken are the numbers of generations that the place has, or says that it has, and that do not open; 0 is one without a number.
	broken []int32
	// missing are those of them whose blob is of a version of the master key that is not there.
	missing []int32
}

// judgeStatus opens the blobs in the status, which is not trusted until then.
func (r *dataKeyRequestReconciler) judgeStatus(ctx context.Context, key DataKey, status *v1alpha1.DataKeyRequestStatus) (found, error) {
	if len(status.Generations) == 0 && status.Generation == nil {
		return found{state: blobAbsent}, nil
	}
	var in found
	for _, g := range status.Generations {
		sealed, state, err := r.open(ctx, key, g.CiphertextBlob)
		if err != nil {
			return found{}, err
		}
		if state == blobOpens && sealed.Generation == g.Generation && in.generations.find(g.Generation) == nil {
			in.generations = in.generations.with(generation{sealed, g.CreatedAt.Time})
			continue
		}
		in.fail(g.Generation, state)
	}
	if newest := status.Generation; newest != nil && in.generations.find(*newest) == nil && !slices.Contains(in.broken, *newest) {
		in.broken = append(in.broken, *newest)
	}
	in.state = in.sum()
	if in.state == blobRefused && status.KeyID != "" && status.KeyID != key.MasterKey.KeyID {
		in.state = blobOfOtherKey
	}
	return in, nil
}

// judgeSecret opens the blobs in a Secret. What known has already is not opened again.
func (r *dataKeyRequestReconciler) judgeSecret(ctx context.Context, key DataKey, secret *corev1.Secret, known generations) (found, error) {
	if secret.Type != v1alpha1.SecretTypeDataKey {
		return found{state: blobForeign}, nil
	}
	var in found
	for _, entry := range slices.Sorted(maps.Keys(secret.Data)) {
		name, number := parseEntry(entry)
		if name != v1alpha1.SecretKeyCiphertextBlob {
			continue
		}
		blob := secret.Data[entry]
		var sealed SealedDataKey
		state := blobOpens
		if same := known.findBlob(blob); same != nil {
			sealed = same.sealed
		} else {
			var err error
			if sealed, state, err = r.open(ctx, key, blob); err != nil {
				return found{}, err
			}
		}
		if state == blobOpens && (number == 0 || sealed.Generation == number) && in.generations.find(sealed.Generation) == nil {
			in.generations = in.generations.with(generation{sealed: sealed})
			continue
		}
		if number == 0 && state == blobOfMissingVersion {
			number = newestNumber(secret)
		}
		in.fail(number, state)
	}
	in.state = in.sum()
	return in, nil
}

// newestNumber is the number of the newest generation as a Secret states it, 0 where it states none.
func newestNumber(secret *corev1.Secret) int32 {
	n, err := strconv.ParseInt(string(secret.Data[v1alpha1.SecretKeyGeneration]), 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// fail notes a generation that does not open.
func (in *found) fail(number int32, state blobState) {
	in.broken = append(in.broken, number)
	if state == blobOfMissingVersion {
		in.missing = append(in.missing, number)
	}
}

func (in *found) sum() blobState {
	if len(in.generations) > 0 {
		return blobOpens
	}
	return blobRefused
}

// open opens a blob, of whatever generation.
func (r *dataKeyRequestReconciler) open(ctx context.Context, key DataKey, blob []byte) (SealedDataKey, blobState, error) {
	if len(blob) == 0 {
		return SealedDataKey{}, blobRefused, nil
	}
	key.Generation = 0
	sealed, err := r.keyService.OpenDataKey(ctx, key, blob)
	if errors.Is(err, ErrKeyVersionMissing) {
		// A key service that ran when an older backup of the material was restored may still know the version. While it runs, the data key
		// can be saved.
		sealed, err = r.keyService.RewrapDataKey(ctx, key, blob)
	}
	switch {
	case errors.Is(err, ErrBlobRefused):
		return SealedDataKey{}, blobRefused, nil
	case errors.Is(err, ErrKeyVersionMissing):
		return SealedDataKey{}, blobOfMissingVersion, nil
	case err != nil:
		return SealedDataKey{}, blobAbsent, dataKeyError(key, err)
	default:
		return sealed, blobOpens, nil
	}
}

// merge is every generation that opens anywhere. Where both places have a generation, the status wins: whoever may edit the Secret
// could put an older blob of the same scope there. What only the Secret has is taken over, so that a status that was edited or
// restored loses nothing, and has no date yet. lost are the numbers of those that open nowhere, and may open again: of what the Secret
// alone has, that is what waits for a version of the master key, or, without a status, all of it.
func merge(status, secret found) (all generations, lost []int32) {
	all = slices.Clone(status.generations)
	for _, g := range secret.generations {
		if all.find(g.number()) == nil {
			all = all.with(generation{sealed: g.sealed})
		}
	}
	for _, number := range slices.Concat(status.broken, secret.missing) {
		if all.find(number) == nil {
			lost = append(lost, number)
		}
	}
	if status.state == blobAbsent {
		// The Secret is all there is: what does not open there may still be had back.
		lost = append(lost, secret.broken...)
	}
	slices.Sort(lost)
	return all, slices.Compact(lost)
}

// inStatus are the generations as a status has them.
func (g generations) inStatus() []v1alpha1.DataKeyGeneration {
	var out []v1alpha1.DataKeyGeneration
	for _, one := range g {
		out = append(out, v1alpha1.DataKeyGeneration{
			Generation: one.number(), KeyVersion: one.sealed.KeyVersion,
			CreatedAt: metav1.NewTime(one.createdAt).Rfc3339Copy(), CiphertextBlob: one.sealed.CiphertextBlob,
		})
	}
	return out
}

// numbers names generations in a message.
func numbers(of []int32) string {
	var names []string
	for _, number := range of {
		if number == 0 {
			names = append(names, "the newest")
			continue
		}
		names = append(names, fmt.Sprint(number))
	}
	if len(names) == 1 {
		return "generation " + names[0]
	}
	return "generations " + strings.Join(names, ", ")
}
