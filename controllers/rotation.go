package controllers

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// scheduleJitter is how long after a time of its schedule a key is rotated at most.
const scheduleJitter = 5 * time.Minute

// cronParser takes five fields and nothing else: no seconds, no descriptors such as @daily.
var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

// nextRotation is when spec.rotation makes the next version of a master key whose primary version is so since then; the zero time
// where it does not. The error says what is wrong with the schedule.
func nextRotation(rotation v1alpha1.MasterKeyRotation, keyID string, since time.Time) (time.Time, error) {
	if rotation.Interval != nil {
		return intervalEnd(since, rotation.Interval.Duration, keyID), nil
	}
	if rotation.Schedule == "" {
		return time.Time{}, nil
	}
	schedule, err := parseSchedule(rotation.Schedule, rotation.TimeZone)
	if err != nil {
		return time.Time{}, err
	}
	next := schedule.next(since)
	if next.IsZero() {
		return time.Time{}, fmt.Errorf("spec.rotation.schedule %q has no time in the next five years: correct the day and the month", rotation.Schedule)
	}
	return next.Add(jitter(keyID, scheduleJitter)), nil
}

// A zonedSchedule has its times by the clocks of a zone.
type zonedSchedule struct {
	times    *cron.SpecSchedule // in UTC
	location *time.Location
}

// next is the first time after a moment, the zero time where there is none in the next five years. The times are looked for on a clock that
// is never changed, and read as the zone's then: within a zone, cron takes one day for another where midnight is left out, and one
// hour where the clocks are changed by a part of it.
func (s zonedSchedule) next(since time.Time) time.Time {
	shown := onTheWall(since.In(s.location), time.UTC)
	for limit := shown.Year() + 5; ; {
		shown = s.times.Next(shown)
		if shown.IsZero() || shown.Year() > limit {
			return time.Time{}
		}
		at := onTheWall(shown, s.location)
		leftOut := !onTheWall(at, time.UTC).Equal(shown)
		if !leftOut && at.After(since) { // of a time that comes twice, one counts, and it may be over
			return at
		}
	}
}

// onTheWall is when clocks of a zone show what a time shows in its own.
func onTheWall(t time.Time, location *time.Location) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), location)
}

func parseSchedule(text, timeZone string) (zonedSchedule, error) {
	location := time.UTC
	if timeZone != "" {
		var err error
		if location, err = time.LoadLocation(timeZone); err != nil || timeZone == "Local" { // Local is wherever the manager runs
			return zonedSchedule{}, fmt.Errorf("spec.rotation.timeZone %q is not a name of the IANA time zone database, such as Europe/Berlin", timeZone)
		}
	}
	parsed, err := cronParser.Parse(text)
	if err == nil && strings.Contains(text, "=") {
		err = errors.New("the time zone is a field of its own, timeZone")
	}
	if err != nil {
		return zonedSchedule{}, fmt.Errorf("spec.rotation.schedule %q is not a cron schedule of five fields: %w", text, err)
	}
	schedule, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return zonedSchedule{}, errors.New("internal error: a schedule of an unknown kind")
	}
	const minutes = 1<<60 - 1 // the other bits tell a star
	if bits.OnesCount64(schedule.Minute&minutes) > 1 {
		return zonedSchedule{}, fmt.Errorf("spec.rotation.schedule %q has times less than an hour apart: give one minute in its first field", text)
	}
	schedule.Location = time.UTC
	return zonedSchedule{schedule, location}, nil
}

// A rotationPlan says whether a rotation is due, and why.
type rotationPlan struct {
	// due by time needs the clocks to agree; asked for does not.
	due, asked bool
	// next is when the next one is due by time, zero where nothing waits for time.
	next time.Time
	// finding is what the condition Rotated says as long as nothing is done.
	finding finding
}

// planRotation decides about the rotation of a master key. It looks at nothing but its arguments.
func planRotation(key *v1alpha1.MasterKey, info MasterKeyInfo, now time.Time) rotationPlan {
	rotation, request := key.Spec.Rotation, v1alpha1.RequestedAt(key.Annotations[v1alpha1.AnnotationRotateRequestedAt])
	p := rotationPlan{
		// A version that was made and is not the primary one is of a rotation that somebody began.
		asked:   request != "" && request != info.RotateRequestedAt || len(info.Versions) > 0 && info.Versions[0].Version > info.PrimaryVersion,
		finding: finding{kind: v1alpha1.ConditionRotated},
	}
	next, err := nextRotation(rotation, key.KeyID(), info.PrimarySince)
	p.due = passed(now, next, info.PrimarySince)
	suspended := rotation.Suspend != nil && *rotation.Suspend
	enabled := key.WantedState() == v1alpha1.MasterKeyStateEnabled
	rotated := fmt.Sprintf("version %d is the primary version since %s", info.PrimaryVersion, info.PrimarySince.UTC().Format(time.RFC3339))
	say := func(holds bool, reason, message string) {
		p.finding.holds, p.finding.reason, p.finding.message = holds, reason, message
	}
	switch {
	case !enabled && (p.asked || p.due && !suspended):
		say(false, v1alpha1.ReasonNotEnabled, fmt.Sprintf("a rotation waits until spec.state is Enabled; it is %s", key.Spec.State))
	case err != nil:
		say(false, v1alpha1.ReasonInvalidSchedule, err.Error())
	case suspended && p.due:
		say(false, v1alpha1.ReasonSuspended, fmt.Sprintf("a rotation has been due since %s: take spec.rotation.suspend away, and it is done",
			next.UTC().Format(time.RFC3339)))
	case suspended:
		say(true, v1alpha1.ReasonSuspended, rotated+"; spec.rotation.suspend leaves out further ones by time")
	case !next.IsZero() || request != "":
		say(true, v1alpha1.ReasonRotated, rotated)
	}
	if enabled && !suspended {
		p.next = next
	}
	p.asked = p.asked && enabled
	p.due = p.due && enabled && !suspended
	return p
}
