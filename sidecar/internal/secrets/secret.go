// Package secrets reads sealed data keys from the Secrets that are mounted into the sidecar. Nothing here is secret: what a Secret
// holds is for the key service to open.
package secrets

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
)

// Entries of the Secret of a DataKeyRequest that are read here; api/v1alpha1 declares them. What the other entries say
// stands in the blob's header too, and there it is authenticated.
const (
	ciphertextBlobFile    = "ciphertextBlob"
	encryptionContextFile = "encryptionContext"
	aadFile               = "aad"
)

// MaxGenerations is the most generations of one data key that are issued; api/v1alpha1 declares it.
const MaxGenerations = 100

var (
	// ErrMissing reports that the Secret is not mounted yet, or has no blob.
	ErrMissing = errors.New("not there yet")
	// ErrInvalid reports a Secret, or an entry of it, that cannot hold this data key. What wraps it says why.
	ErrInvalid = errors.New("does not hold this data key")
)

// Secret is one data key as its Secret holds it. Nothing in it is secret.
type Secret struct {
	// Newest is in the entry ciphertextBlob.
	Newest Entry
	// Older are in the entries ciphertextBlob.<n>: each n once and lower than Newest's, the highest first, at most
	// MaxGenerations - 1.
	Older []Entry
	// Ignored says of what is named like a generation, and not taken for one, why.
	Ignored []string
}

// Entry is one generation in a Secret.
type Entry struct {
	keyservice.Sealed
	// Err says why the entry cannot be used. Then no more than Generation is set, and of Newest not even that.
	Err error
}

// olderFile is the entry with the blob of a generation that is not the newest; api/v1alpha1 declares how it is named.
func olderFile(generation uint32) string {
	return ciphertextBlobFile + "." + strconv.FormatUint(uint64(generation), 10)
}

// olderGeneration reads the generation, 1 to 2^31-1, out of a name that olderFile made. Of another name it is 0.
func olderGeneration(file string) uint32 {
	number, ok := strings.CutPrefix(file, ciphertextBlobFile+".")
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(number, 10, 31)
	if err != nil || olderFile(uint32(n)) != file { // with a leading zero it would be a second name of the same
		return 0
	}
	return uint32(n)
}

// candidates are the generations that entries of a Secret are named after.
type candidates struct {
	generations []uint32
	// misnamed is the first, in alphabetical order, of the entries that look like a generation's and are none, which
	// are so many in all.
	misnamed string
	others   int
}

func (c *candidates) add(file string) {
	if !strings.HasPrefix(file, ciphertextBlobFile+".") {
		return
	}
	if n := olderGeneration(file); n != 0 {
		c.generations = append(c.generations, n)
		return
	}
	if c.others == 0 || file < c.misnamed {
		c.misnamed = file
	}
	c.others++
}

// pick returns the generations to read, the highest first, of a Secret whose newest one is that, 0 where it is not known.
func (c *candidates) pick(newest uint32) (older []uint32, ignored []string) {
	slices.Sort(c.generations)
	slices.Reverse(c.generations)
	older = c.generations
	if c.others > 0 {
		ignored = append(ignored, ignoring(c.misnamed, c.others, fmt.Sprintf(
			"must be %s. and a number of 1 to %d without leading zeros", ciphertextBlobFile, math.MaxInt32)))
	}
	if newest != 0 {
		at := slices.IndexFunc(older, func(n uint32) bool { return n < newest })
		if at < 0 {
			at = len(older)
		}
		if at > 0 {
			ignored = append(ignored, ignoring(olderFile(older[0]), at, fmt.Sprintf(
				"must be of a generation before that of %s, which is %d", ciphertextBlobFile, newest)))
		}
		older = older[at:]
	}
	if most := MaxGenerations - 1; len(older) > most {
		ignored = append(ignored, ignoring(olderFile(older[most]), len(older)-most, fmt.Sprintf(
			"at most %d generations are read", MaxGenerations)))
		older = older[:most]
	}
	return older, ignored
}

// ignoring is a sentence about an entry, and those like it, n in all.
func ignoring(file string, n int, why string) string {
	if n == 1 {
		return fmt.Sprintf("entry %q: %s", file, why)
	}
	return fmt.Sprintf("entry %q and %d more: %s", file, n-1, why)
}

// parseEntry reads the blob of an entry. Whose blob it is decides here already, so that no other one is opened under this name.
func parseEntry(name, file string, blob []byte, generation uint32) (keyservice.Sealed, error) {
	parsed, err := envelope.Parse(blob)
	if err != nil {
		return keyservice.Sealed{}, invalid(name, "entry %s: %v", file, err)
	}
	switch h := parsed.Header; {
	case h.Kind != envelope.KindDataKey:
		return keyservice.Sealed{}, invalid(name, "entry %s: the blob is of kind %v: must be %v", file, h.Kind, envelope.KindDataKey)
	case h.Scope.Name != name:
		return keyservice.Sealed{}, invalid(name, "entry %s: the blob belongs to the DataKeyRequest %q", file, h.Scope.Name)
	case generation != 0 && h.Scope.Generation != generation:
		return keyservice.Sealed{}, invalid(name, "entry %s: the blob is of generation %d", file, h.Scope.Generation)
	default:
		return keyservice.Sealed{
			CiphertextBlob: blob, Generation: h.Scope.Generation,
			Renewal: keyservice.Renewal{KeyID: h.KeyID, KeyVersion: h.KeyVersion, MaterialID: h.MaterialID, Name: name},
		}, nil
	}
}

func invalid(name, format string, args ...any) error {
	return fmt.Errorf("the Secret %q %w: %s", name, ErrInvalid, fmt.Sprintf(format, args...))
}
