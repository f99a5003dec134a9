package kms

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"
	"unicode/utf8"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/seal"
)

// recordEntry is the entry of a master key's Secret that holds its record.
const recordEntry = "record"

// record is what the Secret of a master key says beside the versions: JSON, in the entry of that name. It is for the holder of the
// Secret to change: nothing in it is authenticated, and nothing in it is secret.
type record struct {
	// Primary is the version that wraps new data keys. At most one newer version lies beside it, of a rotation that is not done.
	Primary uint32 `json:"primary"`
	// PrimarySince is when it became the primary version.
	PrimarySince time.Time `json:"primarySince"`
	// RotateRequestedAt is the request for a rotation that was served last.
	RotateRequestedAt string `json:"rotateRequestedAt,omitempty"`
	// WaitingPeriod and OrphanDataKeys are the DeletionTerms.
	WaitingPeriod  duration `json:"waitingPeriod"`
	OrphanDataKeys bool     `json:"orphanDataKeys,omitempty"`
	// Deletion is the waiting period that has begun.
	Deletion *deletionRecord `json:"deletion,omitempty"`
	// Destroyed says that the versions were destroyed, and whose they were. None is left then.
	Destroyed *destroyedRecord `json:"destroyed,omitempty"`
}

type deletionRecord struct {
	BeganAt time.Time `json:"beganAt"`
	DueAt   time.Time `json:"dueAt"`
}

type destroyedRecord struct {
	At        time.Time `json:"at"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Versions  int       `json:"versions"`
}

// duration is written as Go writes it: 720h0m0s.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

// firstRecord is the record of a key with one version.
func firstRecord(since time.Time, terms DeletionTerms, rotateRequestedAt string) record {
	return record{
		Primary:           1,
		PrimarySince:      since,
		RotateRequestedAt: rotateRequestedAt,
		WaitingPeriod:     duration(terms.WaitingPeriod),
		OrphanDataKeys:    terms.OrphanDataKeys,
	}
}

// defaultTerms are those of a key whose Secret has no record.
var defaultTerms = DeletionTerms{WaitingPeriod: v1alpha1.DefaultWaitingPeriod}

// parseRecord reads a record. There is one way to write each: what is not known, stands twice or is spelled in another way would be
// lost with the next write.
func parseRecord(b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return record{}, fmt.Errorf("is not JSON of a record: %w", err)
	}
	if err := r.check(); err != nil {
		return record{}, err
	}
	want, err := r.marshal()
	if err != nil {
		return record{}, err
	}
	var got bytes.Buffer
	if err := json.Compact(&got, b); err != nil {
		return record{}, fmt.Errorf("is not JSON of a record: %w", err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		return record{}, fmt.Errorf("is read as %s and must say just that", want)
	}
	return r, nil
}

func (r record) check() error {
	switch {
	case r.Primary == 0 || r.Primary > v1alpha1.MaxMasterKeyVersions:
		return fmt.Errorf("names no primary version of 1 to %d", v1alpha1.MaxMasterKeyVersions)
	case r.PrimarySince.IsZero():
		return errors.New("does not say since when the primary version is that: primarySince")
	case r.WaitingPeriod <= 0:
		return errors.New("has no waitingPeriod of more than 0s")
	case r.Deletion != nil && (r.Deletion.BeganAt.IsZero() || r.Deletion.DueAt.Before(r.Deletion.BeganAt)):
		return errors.New("has a deletion without beganAt, or with a dueAt before it")
	case r.Destroyed != nil && (r.Destroyed.At.IsZero() || r.Destroyed.Namespace == "" || r.Destroyed.Name == "" || r.Destroyed.Versions < 1):
		return errors.New("does not say when how many versions of which MasterKey were destroyed: at, namespace, name, versions")
	}
	return checkRotateRequest(r.RotateRequestedAt)
}

// fits returns an error unless the record can be that of a key with versions up to newest.
func (r record) fits(newest uint32) error {
	switch {
	case r.Destroyed != nil:
		return errors.New("says that the versions were destroyed, which are there")
	case newest < r.Primary || newest > r.Primary+1:
		return fmt.Errorf("names the primary version %d, but the newest version is %d", r.Primary, newest)
	}
	return nil
}

// checkRotateRequest makes sure that a request for a rotation comes back from the record as it is: else it would be served again
// and again.
func checkRotateRequest(request string) error {
	if len(request) > v1alpha1.MaxRequestedAt || !utf8.ValidString(request) {
		return fmt.Errorf("rotateRequestedAt: must be UTF-8 of at most %d bytes", v1alpha1.MaxRequestedAt)
	}
	return nil
}

func (r record) marshal() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil { // a time in the year 10000 or later
		return nil, fmt.Errorf("a record of a master key: %w", err)
	}
	return b, nil
}

// in returns a Secret with the record in it. The data is not shared with the Secret that came.
func (r record) in(secret seal.Secret) (seal.Secret, error) {
	b, err := r.marshal()
	secret.Data = maps.Clone(secret.Data)
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	secret.Data[recordEntry] = b
	return secret, err
}

// recordOf reads the record of a Secret. One with version 1 alone needs none: there was none before there were rotations.
func recordOf(secret seal.Secret) (record, error) {
	if b, ok := secret.Data[recordEntry]; ok {
		return parseRecord(b)
	}
	for entry := range secret.Data {
		if number, ok := seal.ParseVersionEntry(entry); ok && number != 1 {
			return record{}, errors.New("is missing, so that nothing says which version is the primary one")
		}
	}
	since, err := time.Parse(time.RFC3339, string(secret.Data[seal.VersionEntry(1)+createdAtSuffix]))
	if err != nil {
		since = time.Time{} // which is told of the entry itself
	}
	return firstRecord(since, defaultTerms, ""), nil
}

// terms are the DeletionTerms of the record.
func (r record) terms() DeletionTerms {
	return DeletionTerms{WaitingPeriod: time.Duration(r.WaitingPeriod), OrphanDataKeys: r.OrphanDataKeys}
}
