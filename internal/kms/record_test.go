package kms

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	plainRecord = `{"primary":1,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`
	fullRecord  = `{"primary":2,"primarySince":"2026-11-21T12:00:00Z","rotateRequestedAt":"2026-11-21","waitingPeriod":"168h0m0s","orphanDataKeys":true,` +
		`"deletion":{"beganAt":"2026-11-21T12:00:00Z","dueAt":"2026-12-21T12:00:00Z"},` +
		`"destroyed":{"at":"2026-12-21T12:00:01Z","namespace":"team-a","name":"orders","versions":2}}`
)

func TestARecordIsReadAsItWasWritten(t *testing.T) {
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	full := record{
		Primary: 2, PrimarySince: at, RotateRequestedAt: "2026-11-21", WaitingPeriod: duration(168 * time.Hour), OrphanDataKeys: true,
		Deletion:  &deletionRecord{BeganAt: at, DueAt: at.AddDate(0, 0, 30)},
		Destroyed: &destroyedRecord{At: at.AddDate(0, 0, 30).Add(time.Second), Namespace: "team-a", Name: "orders", Versions: 2},
	}
	for text, want := range map[string]record{
		plainRecord: {Primary: 1, PrimarySince: at, WaitingPeriod: duration(720 * time.Hour)},
		fullRecord:  full,
		"\n" + strings.ReplaceAll(fullRecord, ",", " ,\t") + "\n": full, // as an editor leaves it
	} {
		got, err := parseRecord([]byte(text))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s is read as %s (%v)", text, diff, err)
		}
	}
}

func TestARecordThatBreaksARuleIsRefused(t *testing.T) {
	replace := func(from string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(from) }
	for name, text := range map[string]string{
		"nothing":                          ``,
		"null":                             `null`,
		"a list":                           `[]`,
		"an empty one":                     `{}`,
		"no primary version":               replace(plainRecord, `"primary":1,`, ``),
		"version 0":                        replace(plainRecord, `:1,`, `:0,`),
		"version 1001":                     replace(plainRecord, `:1,`, `:1001,`),
		"version 1.0":                      replace(plainRecord, `:1,`, `:1.0,`),
		"version 2 to the 32nd, plus 1":    replace(plainRecord, `:1,`, `:4294967297,`),
		"a name in upper case":             replace(plainRecord, `"primary"`, `"PRIMARY"`),
		"a name that is escaped":           replace(plainRecord, `"primary"`, `"\u0070rimary"`),
		"another order":                    `{"waitingPeriod":"720h0m0s","primary":1,"primarySince":"2026-11-21T12:00:00Z"}`,
		"no time":                          replace(plainRecord, `"primarySince":"2026-11-21T12:00:00Z",`, ``),
		"a day":                            replace(plainRecord, `T12:00:00Z`, ``),
		"a waiting period in days":         replace(plainRecord, `720h0m0s`, `30d`),
		"a waiting period as a number":     replace(plainRecord, `"720h0m0s"`, `2592000`),
		"a waiting period in another form": replace(plainRecord, `720h0m0s`, `720h`),
		"a negative waiting period":        replace(plainRecord, `720h`, `-720h`),
		"a request of 257 bytes":           replace(fullRecord, `"2026-11-21"`, `"`+strings.Repeat("x", 257)+`"`),
		"a request that is no text":        replace(fullRecord, `"2026-11-21"`, "\"\xc3\""),
		"a request that is empty":          replace(fullRecord, `"2026-11-21"`, `""`),
		"orphanDataKeys that is false":     replace(fullRecord, `true`, `false`),
		"a deletion that never began":      replace(fullRecord, `"beganAt":"2026-11-21T12:00:00Z",`, ``),
		"a deletion that is never due":     replace(fullRecord, `,"dueAt":"2026-12-21T12:00:00Z"`, ``),
		"a deletion of null":               replace(plainRecord, `}`, `,"deletion":null}`),
		"destroyed at no time":             replace(fullRecord, `"at":"2026-12-21T12:00:01Z",`, ``),
		"destroyed of no namespace":        replace(fullRecord, `team-a`, ``),
		"destroyed of no name":             replace(fullRecord, `orders`, ``),
		"no version destroyed":             replace(fullRecord, `"versions":2`, `"versions":0`),
		"half of one":                      fullRecord[:60],
		"something after it":               fullRecord + `{}`,
	} {
		if r, err := parseRecord([]byte(text)); err == nil || r != (record{}) {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
}

// What is read as a record keeps every rule, and is written as what was read.
func FuzzRecord(f *testing.F) {
	for _, text := range []string{plainRecord, fullRecord, `{"primary":1,"primary":2}`, `{}`, `null`, fullRecord[:60]} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			if r != (record{}) {
				t.Errorf("a record came beside the error %v", err)
			}
			return
		}
		if err := r.check(); err != nil {
			t.Errorf("%q is read although it %v", b, err)
		}
		text, err := r.marshal()
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range []string{`"primary"`, `"primarySince"`, `"waitingPeriod"`, `"deletion"`, `"destroyed"`} {
			if n := bytes.Count(b, []byte(field)); n > bytes.Count(text, []byte(field)) {
				t.Errorf("%q has the field %s %d times", b, field, n)
			}
		}
		again, err := parseRecord(text)
		if diff := cmp.Diff(r, again); err != nil || diff != "" {
			t.Errorf("%q is written as %s, which is read as %s (%v)", b, text, diff, err)
		}
	})
}
