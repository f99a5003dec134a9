package controllers

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// day is a Friday, in the winter time of Berlin.
var day = time.Date(2026, time.January, 2, 12, 0, 0, 0, time.UTC)

func duration(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }

func TestNextRotation(t *testing.T) {
	for name, tc := range map[string]struct {
		rotation v1alpha1.MasterKeyRotation
		since    time.Time
		want     time.Time // without the jitter
		jitter   time.Duration
		wantErr  string
	}{
		"without a rotation there is no next one": {v1alpha1.MasterKeyRotation{}, day, time.Time{}, 0, ""},
		"an interval, and up to a tenth of it":    {v1alpha1.MasterKeyRotation{Interval: duration(5 * time.Hour)}, day, day.Add(5 * time.Hour), 30 * time.Minute, ""},
		"an interval, and an hour at most":        {v1alpha1.MasterKeyRotation{Interval: duration(2160 * time.Hour)}, day, day.Add(2160 * time.Hour), time.Hour, ""},
		"the next time of a schedule in UTC": {
			v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *"}, day, time.Date(2026, 1, 3, 3, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"the next time of a schedule in a zone": {
			v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *", TimeZone: "Europe/Berlin"}, day, time.Date(2026, 1, 3, 2, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"the next time of a schedule in the summer time of a zone": {
			v1alpha1.MasterKeyRotation{Schedule: "0 3 1 7 *", TimeZone: "Europe/Berlin"}, day, time.Date(2026, 7, 1, 1, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"a time that the clocks leave out is left out": {
			v1alpha1.MasterKeyRotation{Schedule: "30 2 29 3 *", TimeZone: "Europe/Berlin"}, day, time.Date(2027, 3, 29, 0, 30, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"a day of the week whose midnight the clocks leave out": {
			v1alpha1.MasterKeyRotation{Schedule: "0 3 * * FRI", TimeZone: "Africa/Cairo"}, time.Date(2026, 4, 23, 12, 0, 0, 0, time.UTC),
			time.Date(2026, 4, 24, 0, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"a day of the year whose midnight the clocks leave out": {
			v1alpha1.MasterKeyRotation{Schedule: "0 12 24 4 *", TimeZone: "Africa/Cairo"}, day, time.Date(2026, 4, 24, 9, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"the day after is not that day": {
			v1alpha1.MasterKeyRotation{Schedule: "0 12 8 3 *", TimeZone: "America/Havana"}, time.Date(2025, 3, 8, 18, 0, 0, 0, time.UTC),
			time.Date(2026, 3, 8, 16, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"clocks that are changed by half an hour": {
			v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *", TimeZone: "Australia/Lord_Howe"}, time.Date(2026, 4, 4, 12, 0, 0, 0, time.UTC),
			time.Date(2026, 4, 4, 16, 30, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"a time that comes twice": {
			v1alpha1.MasterKeyRotation{Schedule: "30 2 * * *", TimeZone: "Europe/Berlin"}, time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC),
			time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC), 65 * time.Minute, "",
		},
		"a time that comes twice counts once": {
			v1alpha1.MasterKeyRotation{Schedule: "30 2 * * *", TimeZone: "Europe/Berlin"}, time.Date(2026, 10, 25, 0, 32, 0, 0, time.UTC),
			time.Date(2026, 10, 26, 1, 30, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"names of months and days": {
			v1alpha1.MasterKeyRotation{Schedule: "0 0 * feb mon"}, day, time.Date(2026, 2, 2, 0, 0, 0, 0, time.UTC), 5 * time.Minute, "",
		},
		"a leap day":                      {v1alpha1.MasterKeyRotation{Schedule: "0 0 29 2 *"}, day, time.Date(2028, 2, 29, 0, 0, 0, 0, time.UTC), 5 * time.Minute, ""},
		"an hour apart is far enough":     {v1alpha1.MasterKeyRotation{Schedule: "7 * * * *"}, day, day.Add(7 * time.Minute), 5 * time.Minute, ""},
		"two times in an hour":            {v1alpha1.MasterKeyRotation{Schedule: "0,30 3 * * *"}, day, time.Time{}, 0, "less than an hour apart"},
		"every minute":                    {v1alpha1.MasterKeyRotation{Schedule: "* 3 * * *"}, day, time.Time{}, 0, "less than an hour apart"},
		"every half an hour by a step":    {v1alpha1.MasterKeyRotation{Schedule: "*/30 * * * *"}, day, time.Time{}, 0, "less than an hour apart"},
		"a day that never comes":          {v1alpha1.MasterKeyRotation{Schedule: "0 0 30 2 *"}, day, time.Time{}, 0, "no time in the next five years"},
		"a minute beyond the hour":        {v1alpha1.MasterKeyRotation{Schedule: "60 3 * * *"}, day, time.Time{}, 0, "five fields"},
		"six fields":                      {v1alpha1.MasterKeyRotation{Schedule: "0 0 3 * * *"}, day, time.Time{}, 0, "five fields"},
		"a descriptor":                    {v1alpha1.MasterKeyRotation{Schedule: "@daily"}, day, time.Time{}, 0, "five fields"},
		"a zone in the schedule":          {v1alpha1.MasterKeyRotation{Schedule: "TZ=UTC 0 3 * * *", TimeZone: "Europe/Berlin"}, day, time.Time{}, 0, "five fields"},
		"a zone that is none":             {v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *", TimeZone: "Europe/Nowhere"}, day, time.Time{}, 0, "IANA"},
		"the manager's own zone":          {v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *", TimeZone: "Local"}, day, time.Time{}, 0, "IANA"},
		"a zone that climbs out":          {v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *", TimeZone: "../../etc/passwd"}, day, time.Time{}, 0, "IANA"},
		"an empty zone is UTC, not Local": {v1alpha1.MasterKeyRotation{Schedule: "0 3 * * *"}, day, time.Date(2026, 1, 3, 3, 0, 0, 0, time.UTC), 5 * time.Minute, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, keyID := range []string{"11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"} {
				got, err := nextRotation(tc.rotation, keyID, tc.since)
				if tc.wantErr != "" {
					if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
						t.Errorf("got %v and error %v, want %q", got, err, tc.wantErr)
					}
					continue
				}
				if err != nil || got.Before(tc.want) || got.After(tc.want.Add(tc.jitter)) || got.IsZero() != tc.want.IsZero() {
					t.Errorf("got %v and error %v, want %v and up to %v later", got, err, tc.want, tc.jitter)
				}
			}
		})
	}
}

// Keys of one schedule are not rotated all at once, and each always at the same distance.
func TestJitterSpreads(t *testing.T) {
	seen := map[time.Duration]bool{}
	for i := range 100 {
		name := "11111111-1111-4111-8111-" + time.Duration(i).String()
		d := jitter(name, time.Hour)
		if d < 0 || d > time.Hour || d != jitter(name, time.Hour) {
			t.Errorf("%s: got %v", name, d)
		}
		seen[d.Truncate(time.Minute)] = true
	}
	if len(seen) < 30 {
		t.Errorf("100 keys come at %d different minutes of an hour", len(seen))
	}
}

func TestPlanRotation(t *testing.T) {
	const keyID = "11111111-1111-4111-8111-111111111111"
	info := MasterKeyInfo{PrimaryVersion: 2, PrimarySince: day, Versions: []MasterKeyVersion{{Version: 2}, {Version: 1}}, RotateRequestedAt: "a"}
	interval := v1alpha1.MasterKeyRotation{Interval: duration(100 * time.Hour)}
	type plan struct {
		Due, Asked, Next, Holds bool
		Reason                  string
	}
	for name, tc := range map[string]struct {
		rotation v1alpha1.MasterKeyRotation
		asks     string // the annotation
		state    v1alpha1.MasterKeyState
		now      time.Time
		change   func(*MasterKeyInfo)
		want     plan
	}{
		"nobody asks for rotations":          {now: day, want: plan{}},
		"the interval has not passed":        {rotation: interval, now: day.Add(99 * time.Hour), want: plan{Next: true, Holds: true, Reason: "Rotated"}},
		"the interval has passed":            {rotation: interval, now: day.Add(102 * time.Hour), want: plan{Due: true, Next: true, Holds: true, Reason: "Rotated"}},
		"a new value of the annotation":      {asks: "b", now: day, want: plan{Asked: true, Holds: true, Reason: "Rotated"}},
		"the value that was served":          {asks: "a", now: day, want: plan{Holds: true, Reason: "Rotated"}},
		"a value that is cut to what counts": {asks: strings.Repeat("b", 300), now: day, change: func(i *MasterKeyInfo) { i.RotateRequestedAt = strings.Repeat("b", 256) }, want: plan{Holds: true, Reason: "Rotated"}},
		"a rotation that somebody began":     {now: day, change: func(i *MasterKeyInfo) { i.PrimaryVersion = 1 }, want: plan{Asked: true}},
		"suspended and not due": {
			rotation: v1alpha1.MasterKeyRotation{Interval: interval.Interval, Suspend: new(true)}, now: day, want: plan{Holds: true, Reason: "Suspended"},
		},
		"suspended and due": {
			rotation: v1alpha1.MasterKeyRotation{Interval: interval.Interval, Suspend: new(true)}, now: day.Add(1000 * time.Hour), want: plan{Reason: "Suspended"},
		},
		"suspended and asked for": {
			rotation: v1alpha1.MasterKeyRotation{Interval: interval.Interval, Suspend: new(true)}, asks: "b", now: day, want: plan{Asked: true, Holds: true, Reason: "Suspended"},
		},
		"disabled and due":               {rotation: interval, state: "Disabled", now: day.Add(1000 * time.Hour), want: plan{Reason: "NotEnabled"}},
		"disabled and not due":           {rotation: interval, state: "Disabled", now: day, want: plan{Holds: true, Reason: "Rotated"}},
		"pending deletion and asked for": {asks: "b", state: "PendingDeletion", now: day, want: plan{Reason: "NotEnabled"}},
		"a schedule that is none":        {rotation: v1alpha1.MasterKeyRotation{Schedule: "99 99 99 99 99"}, now: day, want: plan{Reason: "InvalidSchedule"}},
		"a schedule that is none, and asked for": {
			rotation: v1alpha1.MasterKeyRotation{Schedule: "99 99 99 99 99"}, asks: "b", now: day, want: plan{Asked: true, Reason: "InvalidSchedule"},
		},
		"a primary version from the future, by a clock that was wrong": {
			rotation: interval, now: day.Add(-24 * time.Hour), want: plan{Due: true, Next: true, Holds: true, Reason: "Rotated"},
		},
		"a primary version from a moment ahead": {rotation: interval, now: day.Add(-time.Minute), want: plan{Next: true, Holds: true, Reason: "Rotated"}},
	} {
		t.Run(name, func(t *testing.T) {
			key := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{UID: keyID}, Spec: v1alpha1.MasterKeySpec{Rotation: tc.rotation, State: tc.state}}
			if tc.asks != "" {
				metav1.SetMetaDataAnnotation(&key.ObjectMeta, v1alpha1.AnnotationRotateRequestedAt, tc.asks)
			}
			of := info
			if tc.change != nil {
				tc.change(&of)
			}
			p := planRotation(key, of, tc.now)
			if diff := cmp.Diff(tc.want, plan{p.due, p.asked, !p.next.IsZero(), p.finding.holds, p.finding.reason}); diff != "" {
				t.Errorf("plan (-want +got), which says %q:\n%s", p.finding.message, diff)
			}
		})
	}
}

func TestPause(t *testing.T) {
	for name, tc := range map[string]struct {
		moments []time.Time
		want    time.Duration
	}{
		"nothing to wait for":            {[]time.Time{{}, {}}, 0},
		"the earliest counts":            {[]time.Time{day.Add(time.Minute), day.Add(30 * time.Second), {}}, 30 * time.Second},
		"a moment that is past":          {[]time.Time{day.Add(-time.Hour)}, time.Second},
		"a moment far away is looked at": {[]time.Time{day.Add(1000 * time.Hour)}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			if got := pause(day, tc.moments...); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// of makes generations, the newest first, that were made so many hours before day.
func of(hours ...int) generations {
	var all generations
	for i, h := range hours {
		all = append(all, generation{SealedDataKey{Generation: int32(len(hours) - i)}, day.Add(-time.Duration(h) * time.Hour)})
	}
	return all
}

func TestDroppable(t *testing.T) {
	for name, tc := range map[string]struct {
		keep     *int32
		of       generations
		want     []int32
		wantNext time.Time
	}{
		"without keep all are kept":                           {nil, of(0, 100, 200, 300), nil, time.Time{}},
		"as many as are kept":                                 {new(int32(3)), of(0, 100, 200), nil, time.Time{}},
		"one more, superseded long ago":                       {new(int32(2)), of(30, 100, 200), []int32{1}, time.Time{}},
		"one more, superseded just now":                       {new(int32(2)), of(0, 1, 200), nil, day.Add(23 * time.Hour)},
		"one more, superseded 24 hours ago":                   {new(int32(2)), of(0, 24, 200), []int32{1}, time.Time{}},
		"three more, of which one is not superseded for long": {new(int32(2)), of(0, 1, 2, 30, 200), []int32{1}, day.Add(22 * time.Hour)},
		"two that were taken over again just now, below one that was superseded long ago": {
			new(int32(2)), of(0, 100, 200, 0, 0), []int32{3, 2, 1}, time.Time{},
		},
		"all superseded just now": {new(int32(2)), of(0, 1, 2, 3), nil, day.Add(22 * time.Hour)},
		"a clock that was wrong":  {new(int32(2)), of(0, -1000, 200), nil, day.Add(1024 * time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			got, next := tc.of.droppable(tc.keep, day)
			if diff := cmp.Diff(tc.want, got); diff != "" || !next.Equal(tc.wantNext) {
				t.Errorf("got next %v, want %v; dropped (-want +got):\n%s", next, tc.wantNext, diff)
			}
			if left := tc.of.without(got); len(left) != len(tc.of)-len(got) {
				t.Errorf("%d are left", len(left))
			}
		})
	}
}

func TestMerge(t *testing.T) {
	has := func(state blobState, numbers ...int32) found {
		in := found{state: state}
		for _, n := range numbers {
			in.generations = in.generations.with(generation{SealedDataKey{Generation: n, CiphertextBlob: []byte{byte(state)}}, day})
		}
		return in
	}
	lacks := func(in found, numbers ...int32) found {
		in.broken = numbers
		return in
	}
	for name, tc := range map[string]struct {
		status, secret found
		want, wantLost []int32
	}{
		"both have the same":                              {has(blobOpens, 1, 2), has(blobOpens, 1, 2), []int32{2, 1}, nil},
		"the Secret has a newer one":                      {has(blobOpens, 1), has(blobOpens, 1, 2), []int32{2, 1}, nil},
		"the Secret has an older one":                     {has(blobOpens, 2), has(blobOpens, 1, 2), []int32{2, 1}, nil},
		"the Secret lacks one":                            {has(blobOpens, 1, 2), has(blobOpens, 2), []int32{2, 1}, nil},
		"one is broken in the status":                     {lacks(has(blobOpens, 2), 1), has(blobOpens, 1, 2), []int32{2, 1}, nil},
		"one is broken in both":                           {lacks(has(blobOpens, 2), 1), lacks(has(blobOpens, 2), 1), []int32{2}, []int32{1}},
		"one is broken in the Secret":                     {has(blobOpens, 1, 2), lacks(has(blobOpens, 2), 1), []int32{2, 1}, nil},
		"one that nobody knows is broken in the Secret":   {has(blobOpens, 1), lacks(has(blobOpens, 1), 7), []int32{1}, nil},
		"without a status, one is broken in the Secret":   {has(blobAbsent), lacks(has(blobOpens, 2), 1), []int32{2}, []int32{1}},
		"a status that says there is a newer one is lost": {lacks(has(blobOpens, 1), 9), has(blobOpens, 1), []int32{1}, []int32{9}},
	} {
		t.Run(name, func(t *testing.T) {
			all, lost := merge(tc.status, tc.secret)
			var got []int32
			for _, g := range all {
				got = append(got, g.number())
				if inStatus := tc.status.generations.find(g.number()); inStatus != nil && !cmp.Equal(inStatus.sealed, g.sealed) {
					t.Errorf("generation %d is not the one of the status", g.number())
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("generations (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantLost, lost); diff != "" {
				t.Errorf("lost (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseEntry(t *testing.T) {
	for entry, want := range map[string]struct {
		name   string
		number int32
	}{
		"ciphertextBlob": {"ciphertextBlob", 0}, "ciphertextBlob.1": {"ciphertextBlob", 1}, "publicKey.12": {"publicKey", 12},
		"iv.2147483647": {"iv", 2147483647}, "iv.2147483648": {}, "iv.0": {}, "iv.-1": {}, "iv.01": {}, "iv.+1": {}, "iv.": {}, "iv.1.2": {},
		"generation.1": {}, "note": {}, "": {}, ".1": {},
	} {
		if name, number := parseEntry(entry); name != want.name || number != want.number {
			t.Errorf("%q: got %q and %d, want %q and %d", entry, name, number, want.name, want.number)
		}
	}
}
