package controllers_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// dataKey is the spec of a DataKeyRequest with more fields.
func dataKey(fields string) string {
	return fmt.Sprintf("{masterKeyRef: {name: k}, keySpec: AES_256, %s}", fields)
}

// A durationField is a duration of a spec, with its limits.
type durationField struct {
	kind     string
	path     []string
	rule     string
	min, max string
	// under and over are the nearest durations outside the limits.
	under, over string
}

var durationFields = []durationField{
	{
		kind: "MasterKey", path: []string{"spec", "rotation", "interval"}, min: "1h", max: "87600h", under: "59m59s", over: "87600h1s",
		rule: "interval is 1h to 87600h, in whole hours, minutes and seconds, such as 2160h or 1h30m",
	},
	{
		kind: "MasterKey", path: []string{"spec", "deletion", "waitingPeriod"}, min: "168h", max: "8784h", under: "167h59m59s", over: "8784h1s",
		rule: "waitingPeriod is 168h to 8784h, in whole hours, minutes and seconds, such as 720h",
	},
	{
		kind: "DataKeyRequest", path: []string{"spec", "rotation", "interval"}, min: "1h", max: "87600h", under: "59m59s", over: "87600h1s",
		rule: "interval is 1h to 87600h, in whole hours, minutes and seconds, such as 2160h or 1h30m",
	},
}

func (f durationField) String() string {
	return f.kind + " " + strings.Join(f.path, ".")
}

// object has a value in the field, of whatever type.
func (f durationField) object(t *testing.T, namespace string, value any) *unstructured.Unstructured {
	t.Helper()
	spec := "{}"
	if f.kind == "DataKeyRequest" {
		spec = "{masterKeyRef: {name: k}, keySpec: AES_256}"
	}
	object := parse(t, namespace, f.kind, spec)
	if err := unstructured.SetNestedField(object.Object, value, f.path...); err != nil {
		t.Fatal(err)
	}
	return object
}

// decode reads the field as every informer does, into the Go type.
func (f durationField) decode(t *testing.T, object *unstructured.Unstructured) (time.Duration, error) {
	t.Helper()
	text, err := json.Marshal(object.Object)
	if err != nil {
		t.Fatal(err)
	}
	switch f.String() {
	case "MasterKey spec.rotation.interval":
		key := &v1alpha1.MasterKey{}
		if err := json.Unmarshal(text, key); err != nil {
			return 0, err
		}
		return key.Spec.Rotation.Interval.Duration, nil
	case "MasterKey spec.deletion.waitingPeriod":
		key := &v1alpha1.MasterKey{}
		if err := json.Unmarshal(text, key); err != nil {
			return 0, err
		}
		return key.Spec.Deletion.WaitingPeriod.Duration, nil
	default:
		request := &v1alpha1.DataKeyRequest{}
		if err := json.Unmarshal(text, request); err != nil {
			return 0, err
		}
		return request.Spec.Rotation.Interval.Duration, nil
	}
}

// What the API server takes and refuses as a duration, with the field and the rule named.
func TestDurations(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, field := range durationFields {
		path := strings.Join(field.path, ".")
		refused := []string{path, field.rule}
		for name, tc := range map[string]struct {
			value any
			want  []string
		}{
			"the least":                        {field.min, nil},
			"the greatest":                     {field.max, nil},
			"hours, minutes and seconds":       {"200h30m15s", nil},
			"minutes only":                     {"12000m", nil},
			"leading zeros":                    {"00200h", nil},
			"as Go writes it":                  {"720h0m0s", nil},
			"too little":                       {field.under, refused},
			"too much":                         {field.over, refused},
			"nothing":                          {"0s", refused},
			"empty":                            {"", refused},
			"days":                             {"3 days", refused},
			"days in short":                    {"30d", refused},
			"a period of ISO 8601":             {"P30D", refused},
			"a fraction":                       {"200.5h", refused},
			"milliseconds":                     {"200h1ms", refused},
			"a sign":                           {"+200h", refused},
			"negative":                         {"-200h", refused},
			"a bare number":                    {"200", refused},
			"the units in another order":       {"30m200h", refused},
			"a unit twice":                     {"100h100h", refused},
			"a unit in capitals":               {"200H", refused},
			"a line break at its end":          {"200h\n", refused},
			"a line break at its beginning":    {"\n200h", refused},
			"a space":                          {"200h 30m", refused},
			"digits of another script":         {"٢٠٠h", refused},
			"the most that the length lets in": {"99999h99999m999s", refused},
			"the most seconds":                 {"99999s", refused[:1]}, // 27 h, which is enough for some
			"far too long":                     {"99999h99999m99999s", []string{path, "Too long: may not be more than 16"}},
			"more than Go's durations hold":    {"9999999999999999", refused},
			"a number":                         {int64(720), []string{path, "must be of type string"}},
			"a list":                           {[]any{"720h"}, []string{path, "must be of type string"}},
			"an object":                        {map[string]any{}, []string{path, "must be of type string"}},
		} {
			t.Run(field.String()+": "+name, func(t *testing.T) {
				t.Parallel()
				if tc.value == "99999s" && field.min == "1h" {
					tc.want = nil
				}
				object := field.object(t, c.namespace, tc.value)
				checkRefusal(t, c.client.Create(t.Context(), object, client.DryRunAll, client.FieldValidation("Strict")), tc.want)
				if tc.want != nil {
					return
				}
				if _, err := field.decode(t, object); err != nil {
					t.Errorf("it is taken and cannot be decoded: %v", err)
				}
			})
		}
	}
}

// An object that the Go types cannot decode would stop every informer of its kind, for all namespaces. So whatever the API server
// takes as a duration is decoded, and is within the limits.
func TestWhateverDurationIsTakenIsDecoded(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const seed = 20261122
	random := rand.New(rand.NewPCG(seed, seed))
	alphabets := []string{
		"0123456789hms",           // what a duration is made of
		"19hms.+-µun \t\nHMSdPTe", // and what others make of it
		"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:;,_/\\\"'{}[]\x00\u00a0٢é",
	}
	values := []string{"1h", "168h", "720h0m0s", "8784h", "87600h", "5256000m", "99999h", "1h0m0.0s", "1h.5s", ".5h", "1.h", "h", "1hm", "1e3h", "0x10h", "1_0h"}
	for i := range 450 {
		alphabet := []rune(alphabets[i%len(alphabets)])
		var value strings.Builder
		for range 1 + random.IntN(16) {
			value.WriteRune(alphabet[random.IntN(len(alphabet))])
		}
		values = append(values, value.String())
	}
	for range 150 { // of the right shape, and mostly within the limits
		var value strings.Builder
		for _, unit := range "hms" {
			if random.IntN(3) > 0 || unit == 'h' {
				fmt.Fprintf(&value, "%0*d%c", random.IntN(6), random.IntN(9000), unit)
			}
		}
		values = append(values, value.String())
	}
	for _, field := range durationFields {
		t.Run(field.String(), func(t *testing.T) {
			t.Parallel()
			limits := make([]time.Duration, 2)
			for i, text := range []string{field.min, field.max} {
				var err error
				if limits[i], err = time.ParseDuration(text); err != nil {
					t.Fatal(err)
				}
			}
			taken := 0
			for _, value := range values {
				object := field.object(t, c.namespace, value)
				if err := c.client.Create(t.Context(), object, client.DryRunAll); err != nil {
					checkRefusal(t, err, []string{})
					continue
				}
				taken++
				switch got, err := field.decode(t, object); {
				case err != nil:
					t.Errorf("seed %d: %q is taken and cannot be decoded: %v", seed, value, err)
				case got < limits[0] || got > limits[1]:
					t.Errorf("seed %d: %q is taken, and is %v, which is not within %v and %v", seed, value, got, limits[0], limits[1])
				}
			}
			if taken < 50 || taken == len(values) {
				t.Errorf("%d of %d values are taken, want some and not all", taken, len(values))
			}
		})
	}
}

// lifecycleRules are what is taken and refused of the other fields of the lifecycle, with the field and the rule named.
func lifecycleRules() map[string]lifecycleRule {
	const (
		key, request = "MasterKey", "DataKeyRequest"

		either = "spec.rotation: Invalid value: exactly one of interval and schedule is required"
		zoned  = "spec.rotation: Invalid value: timeZone is for a schedule: leave it out, or use schedule in place of interval"
		five   = "schedule has five fields (minute, hour, day of the month, the month, day of the week), such as 0 3 1 */3 *; a time zone stands in timeZone"
		zone   = "timeZone is a name of the IANA time zone database, such as Europe/Berlin or Etc/UTC"
	)
	rules := map[string]lifecycleRule{
		"Enabled":                    {key, `{state: Enabled}`, nil},
		"Disabled":                   {key, `{state: Disabled}`, nil},
		"PendingDeletion":            {key, `{state: PendingDeletion}`, nil},
		"Destroyed as a state":       {key, `{state: Destroyed}`, []string{"spec.state", `Unsupported value: "Destroyed"`, `"Enabled", "Disabled", "PendingDeletion"`}},
		"an unknown state":           {key, `{state: Unavailable}`, []string{"spec.state", `Unsupported value: "Unavailable"`, `"Enabled", "Disabled", "PendingDeletion"`}},
		"a state in lower case":      {key, `{state: disabled}`, []string{"spec.state", `Unsupported value: "disabled"`}},
		"an empty state":             {key, `{state: ""}`, []string{"spec.state", `Unsupported value: ""`}},
		"a state that is a number":   {key, `{state: 1}`, []string{"spec.state", "must be of type string"}},
		"an unknown field of a spec": {key, `{status: Disabled}`, []string{`unknown field "spec.status"`}},

		"an empty deletion":                  {key, `{deletion: {}}`, nil}, // the default fills it
		"orphanDataKeys":                     {key, `{deletion: {orphanDataKeys: true}}`, nil},
		"orphanDataKeys that is a text":      {key, `{deletion: {orphanDataKeys: "true"}}`, []string{"spec.deletion.orphanDataKeys", "must be of type boolean"}},
		"an unknown field of deletion":       {key, `{deletion: {waiting: 720h}}`, []string{`unknown field "spec.deletion.waiting"`}},
		"a deletion with everything":         {key, `{deletion: {waitingPeriod: 168h, orphanDataKeys: false}}`, nil},
		"a MasterKey with the whole of it":   {key, `{state: Disabled, deletion: {waitingPeriod: 8784h}, rotation: {schedule: "0 3 1 */3 *", timeZone: Europe/Berlin, suspend: true}}`, nil},
		"an interval that is suspended":      {key, `{rotation: {interval: 720h, suspend: true}}`, nil},
		"an empty rotation":                  {key, `{rotation: {}}`, []string{"spec.rotation", "exactly one of interval and schedule is required"}},
		"neither interval nor schedule":      {key, `{rotation: {suspend: true}}`, []string{either}},
		"both interval and schedule":         {key, `{rotation: {interval: 720h, schedule: "0 3 * * *"}}`, []string{either}},
		"a timeZone beside an interval":      {key, `{rotation: {interval: 720h, timeZone: Europe/Berlin}}`, []string{zoned}},
		"a timeZone alone":                   {key, `{rotation: {timeZone: Europe/Berlin}}`, []string{either, zoned}},
		"suspend that is a text":             {key, `{rotation: {interval: 720h, suspend: "yes"}}`, []string{"spec.rotation.suspend", "must be of type boolean"}},
		"an unknown field of rotation":       {key, `{rotation: {interval: 720h, cron: x}}`, []string{`unknown field "spec.rotation.cron"`}},
		"keep on a MasterKey":                {key, `{rotation: {interval: 720h, keep: 5}}`, []string{`unknown field "spec.rotation.keep"`}},
		"a schedule on a DataKeyRequest":     {request, dataKey(`rotation: {schedule: "0 3 * * *"}`), []string{`unknown field "spec.rotation.schedule"`}},
		"a state on a DataKeyRequest":        {request, dataKey(`state: Disabled`), []string{`unknown field "spec.state"`}},
		"rotation of a DataKeyRequest":       {request, dataKey(`rotation: {interval: 720h, keep: 5}`), nil},
		"interval without keep":              {request, dataKey(`rotation: {interval: 720h}`), nil},
		"keep without interval":              {request, dataKey(`rotation: {keep: 5}`), nil},
		"an empty rotation of a data key":    {request, dataKey(`rotation: {}`), []string{"spec.rotation", "at least 1 properties"}},
		"1 to keep":                          {request, dataKey(`rotation: {keep: 1}`), []string{"spec.rotation.keep", "greater than or equal to 2"}},
		"2 to keep":                          {request, dataKey(`rotation: {keep: 2}`), nil},
		"99 to keep":                         {request, dataKey(`rotation: {keep: 99}`), nil},
		"100 to keep":                        {request, dataKey(`rotation: {keep: 100}`), []string{"spec.rotation.keep", "less than or equal to 99"}},
		"none to keep":                       {request, dataKey(`rotation: {keep: 0}`), []string{"spec.rotation.keep", "greater than or equal to 2"}},
		"fewer than none to keep":            {request, dataKey(`rotation: {keep: -2}`), []string{"spec.rotation.keep", "greater than or equal to 2"}},
		"a part of one to keep":              {request, dataKey(`rotation: {keep: 2.5}`), []string{"spec.rotation.keep", "must be of type integer"}},
		"a text to keep":                     {request, dataKey(`rotation: {keep: "5"}`), []string{"spec.rotation.keep", "must be of type integer"}},
		"more to keep than 32 bits hold":     {request, dataKey(`rotation: {keep: 4294967298}`), []string{"spec.rotation.keep"}},
		"rewrapPolicy Automatic":             {request, dataKey(`rewrapPolicy: Automatic`), nil},
		"rewrapPolicy Manual":                {request, dataKey(`rewrapPolicy: Manual`), nil},
		"an unknown rewrapPolicy":            {request, dataKey(`rewrapPolicy: Never`), []string{"spec.rewrapPolicy", `Unsupported value: "Never"`, `"Automatic", "Manual"`}},
		"an empty rewrapPolicy":              {request, dataKey(`rewrapPolicy: ""`), []string{"spec.rewrapPolicy", `Unsupported value: ""`}},
		"a rewrapPolicy in lower case":       {request, dataKey(`rewrapPolicy: manual`), []string{"spec.rewrapPolicy", `Unsupported value: "manual"`}},
		"the rewrapPolicy of a MasterKey":    {key, `{rewrapPolicy: Manual}`, []string{`unknown field "spec.rewrapPolicy"`}},
		"a key pair that is rotated":         {request, `{masterKeyRef: {name: k}, keyPairSpec: ECC_NIST_P256, rotation: {interval: 720h, keep: 2}}`, nil},
		"a schedule that is a number":        {key, `{rotation: {schedule: 5}}`, []string{"spec.rotation.schedule", "must be of type string"}},
		"a timeZone that is a number":        {key, `{rotation: {schedule: "0 3 * * *", timeZone: 2}}`, []string{"spec.rotation.timeZone", "must be of type string"}},
		"a schedule of 128 characters":       {key, `{rotation: {schedule: "0 3 * * ` + strings.Repeat("1,", 59) + `10"}}`, nil},
		"a schedule of 129 characters":       {key, `{rotation: {schedule: "0 3 * * ` + strings.Repeat("1,", 59) + `100"}}`, []string{"spec.rotation.schedule", "Too long: may not be more than 128"}},
		"a timeZone of 64 characters":        {key, `{rotation: {schedule: "0 3 * * *", timeZone: ` + strings.Repeat("Z", 64) + `}}`, nil},
		"a timeZone of 65 characters":        {key, `{rotation: {schedule: "0 3 * * *", timeZone: ` + strings.Repeat("Z", 65) + `}}`, []string{"spec.rotation.timeZone", "Too long: may not be more than 64"}},
		"the waitingPeriod of a year":        {key, `{deletion: {waitingPeriod: 8760h}}`, nil},
		"the waitingPeriod of a leap year":   {key, `{deletion: {waitingPeriod: 8784h}}`, nil},
		"a waitingPeriod of an hour more":    {key, `{deletion: {waitingPeriod: 8785h}}`, []string{"spec.deletion.waitingPeriod", "168h to 8784h"}},
		"a waitingPeriod of an hour too few": {key, `{deletion: {waitingPeriod: 167h}}`, []string{"spec.deletion.waitingPeriod", "168h to 8784h"}},
	}
	for _, schedule := range []string{
		"0 3 1 */3 *", "* * * * *", "0 3 * * MON-FRI", "0 3 * * mon", "0 3 1 JAN,JUL ?", "0-30/10 3 1-7 * 1", "0   3  1 */3 *", "59 23 31 12 7",
		"99 99 99 99 99", // of the right shape: the condition Rotated tells of what cannot be
	} {
		rules["schedule "+schedule] = lifecycleRule{key, fmt.Sprintf(`{rotation: {schedule: %q}}`, schedule), nil}
	}
	for _, schedule := range []string{
		"", " ", "*", "3 * * *", "0 3 1 */3", "0 0 3 1 */3 *", "@daily", "@every 1h", "CRON_TZ=UTC 0 3 * * *", "TZ=UTC 0 3 * * *",
		"0 3 * * *\n", "\n0 3 * * *", "0 3\n* * *", "0\t3 * * *", " 0 3 * * *", "0 3 * * * ", "0 3 * * #", "0 3 L * *;", "0 3 * * é", "0\u00a03 * * *",
	} {
		rules[fmt.Sprintf("schedule %q", schedule)] = lifecycleRule{key, fmt.Sprintf(`{rotation: {schedule: %q}}`, schedule), []string{"spec.rotation.schedule", five}}
	}
	for _, name := range []string{"Europe/Berlin", "Etc/UTC", "UTC", "America/Argentina/Buenos_Aires", "Etc/GMT+12", "Etc/GMT-14", "EST5EDT", "America/Port-au-Prince"} {
		rules["timeZone "+name] = lifecycleRule{key, fmt.Sprintf(`{rotation: {schedule: "0 3 * * *", timeZone: %q}}`, name), nil}
	}
	for _, name := range []string{
		"", "Local", "local", "LOCAL", "/Europe/Berlin", "Europe/Berlin/", "Europe//Berlin", "../../etc/passwd", "Europe/../UTC", "Europe/Berlin\n", "\nUTC",
		"+02:00", "2", "Europe Berlin", "Zürich", "Europe.Berlin", `Europe\Berlin`, "UTC\u0000",
	} {
		rules[fmt.Sprintf("timeZone %q", name)] = lifecycleRule{key, fmt.Sprintf(`{rotation: {schedule: "0 3 * * *", timeZone: %q}}`, name), []string{"spec.rotation.timeZone", zone}}
	}
	return rules
}

type lifecycleRule struct {
	kind, spec string
	// want are parts of the message; without any the object is taken.
	want []string
}

// decoded reads an object as every informer does.
func decoded(t *testing.T, object *unstructured.Unstructured) error {
	t.Helper()
	text, err := json.Marshal(object.Object)
	if err != nil {
		t.Fatal(err)
	}
	if object.GetKind() == "MasterKey" {
		return json.Unmarshal(text, &v1alpha1.MasterKey{})
	}
	return json.Unmarshal(text, &v1alpha1.DataKeyRequest{})
}

func TestLifecycleAtCreation(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for name, tc := range lifecycleRules() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := parse(t, c.namespace, tc.kind, tc.spec)
			checkRefusal(t, c.client.Create(t.Context(), object, client.DryRunAll, client.FieldValidation("Strict")), tc.want)
			if tc.want != nil {
				return
			}
			if err := decoded(t, object); err != nil {
				t.Errorf("it is taken and cannot be decoded: %v", err)
			}
		})
	}
}

// Everything about the lifecycle may change at any time, to what may be made.
func TestLifecycleAtUpdate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	before := map[string]*unstructured.Unstructured{
		"MasterKey":      parse(t, c.namespace, "MasterKey", `{state: PendingDeletion, deletion: {waitingPeriod: 200h}, rotation: {interval: 2h}}`),
		"DataKeyRequest": parse(t, c.namespace, "DataKeyRequest", dataKey(`rewrapPolicy: Manual, rotation: {interval: 2h, keep: 3}`)),
	}
	for _, object := range before {
		if err := c.client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	rules := lifecycleRules()
	rules["nothing of it on a MasterKey"] = lifecycleRule{"MasterKey", `{}`, nil}
	rules["nothing of it on a DataKeyRequest"] = lifecycleRule{"DataKeyRequest", `{masterKeyRef: {name: k}, keySpec: AES_256}`, nil}
	delete(rules, "a key pair that is rotated") // another data key
	for name, tc := range rules {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := parse(t, c.namespace, tc.kind, tc.spec)
			object.SetName(before[tc.kind].GetName())
			object.SetResourceVersion(before[tc.kind].GetResourceVersion())
			checkRefusal(t, c.client.Update(t.Context(), object, client.DryRunAll, client.FieldValidation("Strict")), tc.want)
		})
	}
}

// What the API server adds to a spec that says nothing.
func TestLifecycleDefaults(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for name, tc := range map[string]struct {
		kind, spec string
		want       map[string]any
	}{
		"a MasterKey is Enabled":                      {"MasterKey", ``, map[string]any{"keySpec": "AES_256", "state": "Enabled"}},
		"a deletion waits for 30 days":                {"MasterKey", `{deletion: {orphanDataKeys: true}}`, map[string]any{"keySpec": "AES_256", "state": "Enabled", "deletion": map[string]any{"orphanDataKeys": true, "waitingPeriod": "720h"}}},
		"a null is nothing":                           {"MasterKey", `{state: null, deletion: {waitingPeriod: null}}`, map[string]any{"keySpec": "AES_256", "state": "Enabled", "deletion": map[string]any{"waitingPeriod": "720h"}}},
		"a rotation of a data key keeps what it says": {"DataKeyRequest", dataKey(`rotation: {keep: 2}`), map[string]any{"masterKeyRef": map[string]any{"name": "k"}, "keySpec": "AES_256", "deletionPolicy": "Retain", "rewrapPolicy": "Automatic", "rotation": map[string]any{"keep": int64(2)}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := parse(t, c.namespace, tc.kind, tc.spec)
			if err := c.client.Create(t.Context(), object, client.DryRunAll); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, object.Object["spec"]); diff != "" {
				t.Errorf("the spec (-want +got):\n%s", diff)
			}
			if err := decoded(t, object); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a typed client writes, the API server takes: durations as Go writes them.
func TestTypedLifecycle(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, period := range []time.Duration{168 * time.Hour, 200*time.Hour + 30*time.Minute + time.Second, 8784 * time.Hour} {
		key := c.masterKey("typed")
		key.Spec.Deletion.WaitingPeriod = &metav1.Duration{Duration: period}
		key.Spec.Rotation.Interval = &metav1.Duration{Duration: period}
		if err := c.client.Create(t.Context(), key, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		if got := key.Spec.Deletion.WaitingPeriod.Duration; got != period {
			t.Errorf("got waitingPeriod %v, want %v", got, period)
		}
		if got := key.Spec.Rotation.Interval.Duration; got != period {
			t.Errorf("got interval %v, want %v", got, period)
		}
	}
}
