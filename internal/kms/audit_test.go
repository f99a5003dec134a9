package kms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/kms"
)

// writes keeps every Write by itself.
type writes struct {
	all []string
	cut int   // write only so many bytes of the next, if positive
	err error // returned by the next
}

func (w *writes) Write(p []byte) (int, error) {
	n, err := len(p), w.err
	if w.cut > 0 {
		n = w.cut
	}
	w.all = append(w.all, string(p[:n]))
	w.cut, w.err = 0, nil
	return n, err
}

func TestAnAuditRecordIsOneLineInOneWrite(t *testing.T) {
	out := &writes{}
	a := kms.NewJSONAuditor(out)
	err := a.Record(t.Context(), kms.AuditRecord{
		Time: begin, Operation: kms.OperationDecrypt, Decision: kms.DecisionRefused,
		Code: "Denied", Reason: "no \"line\"\nof its own\u2028",
		Caller:  &kms.AuditCaller{Username: "system:serviceaccount:team-a:app", Namespace: "team-a", ServiceAccount: "app", Pod: "app-1", PodUID: "u", Node: "n"},
		Key:     &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1},
		DataKey: &kms.AuditDataKey{Namespace: "team-a", Name: "orders", Generation: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`{"time":"2026-11-21T12:00:00Z","operation":"Decrypt","decision":"refused","code":"Denied",` +
		`"reason":"no \"line\"\nof its own\u2028","caller":{"username":"system:serviceaccount:team-a:app","namespace":"team-a",` +
		`"serviceAccount":"app","pod":"app-1","podUID":"u","node":"n"},"key":{"id":"` + ordersKey.KeyID + `","namespace":"team-a",` +
		`"name":"orders","version":1},"dataKey":{"namespace":"team-a","name":"orders","generation":1}}` + "\n"}
	if diff := cmp.Diff(want, out.all); diff != "" {
		t.Error(diff)
	}
}

func TestAnAuditRecordThatIsNotWrittenWholeIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		cut  int
		err  error
		want error
		next string // what the next record begins with
	}{
		"nothing is written":               {cut: 0, err: errors.New("disk full"), next: "{"},
		"a part is written":                {cut: 5, err: errors.New("disk full"), next: "\n{"},
		"a part is written, with no error": {cut: 5, want: io.ErrShortWrite, next: "\n{"},
	} {
		t.Run(name, func(t *testing.T) {
			out := &writes{cut: c.cut, err: c.err}
			if c.err != nil {
				c.want = c.err
			}
			if c.cut == 0 {
				out.cut = -1
			}
			a := kms.NewJSONAuditor(&partly{out})
			if err := a.Record(t.Context(), kms.AuditRecord{Operation: "first"}); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err := a.Record(t.Context(), kms.AuditRecord{Operation: "second"}); err != nil {
				t.Fatal(err)
			}
			last := out.all[len(out.all)-1]
			if !strings.HasPrefix(last, c.next) || !strings.HasSuffix(last, "}\n") {
				t.Errorf("the next record is %q, want one that begins with %q", last, c.next)
			}
		})
	}
}

// partly makes a cut of -1 a Write of nothing.
type partly struct{ *writes }

func (p *partly) Write(b []byte) (int, error) {
	if p.cut == -1 {
		err := p.err
		p.cut, p.err = 0, nil
		return 0, err
	}
	return p.writes.Write(b)
}

func TestManyAuditRecordsAtOnceStayWhole(t *testing.T) {
	var out bytes.Buffer // not safe for concurrent use: the auditor has to see to it
	a := kms.NewJSONAuditor(&out)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if err := a.Record(t.Context(), kms.AuditRecord{Operation: kms.OperationDecrypt, Reason: strings.Repeat("x", 500)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 50 {
		t.Fatalf("got %d lines, want 50", len(lines))
	}
	for _, line := range lines {
		var r kms.AuditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil || len(r.Reason) != 500 {
			t.Errorf("%q: %v", line, err)
		}
	}
}

type stuck struct{ gate chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.gate; return len(p), nil }

func TestWhoWaitsForTheAuditLogCanGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stuck{make(chan struct{})}
		a := kms.NewJSONAuditor(s)
		first := make(chan error, 1)
		go func() { first <- a.Record(t.Context(), kms.AuditRecord{}) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		second := make(chan error, 1)
		go func() { second <- a.Record(ctx, kms.AuditRecord{}) }()
		synctest.Wait()
		cancel()
		if err := <-second; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want it to give up", err)
		}
		close(s.gate)
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// A log that takes nothing any more ends no call, be it allowed or refused, but late.
func TestNoCallWaitsForTheAuditLogForEver(t *testing.T) {
	const patience, grace = 15 * time.Second, time.Second
	for name, c := range map[string]struct {
		token  string
		limits kms.Limits
		hangUp bool
		want   kms.Code
		within time.Duration
	}{
		"what is allowed is not released":                 {token: app, want: kms.CodeUnavailable, within: patience + grace},
		"what is refused stays refused":                   {token: nobody, want: kms.CodeDenied, within: patience},
		"what is refused to a caller who hung up ends":    {token: nobody, hangUp: true, want: kms.CodeDenied, within: patience},
		"a pod that is throttled is told so all the same": {token: app, limits: kms.Limits{Refusals: 1, RefusalsBurst: 1}, want: kms.CodeThrottled, within: patience},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := settled(t)
				blob := w.Sealed(t, orders())
				s := stuck{make(chan struct{})}
				a := kms.NewJSONAuditor(s)
				var first sync.WaitGroup
				first.Go(func() { _ = a.Record(t.Context(), kms.AuditRecord{}) })
				defer first.Wait()
				defer close(s.gate)
				synctest.Wait()
				w.Auditor, w.Limits = a, c.limits
				w = replica(t, w)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if c.hangUp {
					time.AfterFunc(patience/3, cancel)
				}
				done := make(chan error, 1)
				go func() {
					_, err := w.Decrypt(ctx, c.token, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext})
					done <- err
				}()
				select {
				case err := <-done:
					if kms.CodeOf(err) != c.want {
						t.Errorf("got %v, want %v", err, c.want)
					}
				case <-time.After(c.within + time.Millisecond):
					t.Errorf("it waits for more than %v", c.within)
				}
			})
		})
	}
}
