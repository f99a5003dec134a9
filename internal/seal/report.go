package seal

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Verdict is how far a change of the root key is, in one word.
type Verdict string

// The verdicts.
const (
	// VerdictSettled: one root key wraps the sealing keys, it is this manager's, and it opens them.
	VerdictSettled Verdict = "Settled"
	// VerdictKeepsPrevious: as Settled, but other root keys open the sealing keys too.
	VerdictKeepsPrevious Verdict = "KeepsPrevious"
	// VerdictChanging: a change of the root key is under way, and a manager with these flags goes on with it by itself.
	VerdictChanging Verdict = "Changing"
	// VerdictElsewhere: the installation relies on a root key that is not this manager's.
	VerdictElsewhere Verdict = "Elsewhere"
	// VerdictSealed: nothing that this manager has opens the sealing keys.
	VerdictSealed Verdict = "Sealed"
)

// Verdicts are all of them.
var Verdicts = []Verdict{VerdictSettled, VerdictKeepsPrevious, VerdictChanging, VerdictElsewhere, VerdictSealed}

// Report says which root keys wrap which sealing keys, and what this manager opens of them.
type Report struct {
	InstallID string
	// Primary is the version of the sealing key that seals, since PrimarySince; Newest is that or the one that is being made.
	Primary, Newest uint32
	PrimarySince    time.Time
	// RootKeys wrap the sealing keys, the one that the installation has settled on first.
	RootKeys []ListedRootKey
	// Embedded says that one of them lies in the cluster.
	Embedded bool
	// Current and Previous are the root keys of the configuration; the URI of Previous may be empty.
	Current, Previous ConfiguredRootKey
	Verdict           Verdict
	// Advice says what the verdict means and what there is to do.
	Advice string
}

// ListedRootKey is a root key that wraps sealing keys.
type ListedRootKey struct {
	ID, URI string
	Settled bool
	// Wraps are the versions that it wraps.
	Wraps []uint32
}

// ConfiguredRootKey is a root key of the configuration.
type ConfiguredRootKey struct {
	URI string
	// ID is empty where the root key cannot be opened.
	ID string
	// Opens are the versions that it opened.
	Opens []uint32
	// Keys are the names of the service's keys that wrapped them, where a report was asked for that asks the root keys, and where
	// they can be told; Stale are those of them that the service has replaced by a newer key since.
	Keys  map[uint32]string
	Stale []uint32
	// Problem says why it opens no more.
	Problem string
}

// Name is the ID, or as much of the URI as may be shown where the root key cannot be opened.
func (c *ConfiguredRootKey) Name() string { return cmp.Or(c.ID, ShownURI(c.URI)) }

// is reports whether it is a listed root key. One that cannot be opened is known by its URI.
func (c *ConfiguredRootKey) is(root listedRootKey) bool {
	return c.ID == root.ID || c.ID == "" && c.URI == root.URI
}

// Report returns what is known since the Secret was last read. It asks nobody.
func (k *Keyring) Report() Report { return *k.report.Load() }

// judge keeps what there is to say of a layout, and says it where it is another verdict than before.
func (k *Keyring) judge(l *layout) {
	probe := func(root RootKey, uri string) ConfiguredRootKey {
		c := ConfiguredRootKey{URI: uri}
		if root == nil {
			return c
		}
		c.ID = root.ID()
		for v := uint32(1); v <= l.newest; v++ {
			entry := wrappedEntry(v, tagOf(c.ID))
			if wrapped := l.secret.Data[entry]; len(wrapped) > 0 && bytes.Equal(k.opened[entry], wrapped) {
				c.Opens = append(c.Opens, v)
			}
		}
		return c
	}
	r := l.report(probe(k.current, k.config.RootKey), probe(k.previous, k.config.PreviousRootKey))
	if before := k.report.Swap(&r); before == nil || before.Verdict != r.Verdict {
		k.config.Logger.Info("Root key", "verdict", r.Verdict, "advice", r.Advice)
	}
}

// report makes the report out of what is durable and what opened.
func (l *layout) report(current, previous ConfiguredRootKey) Report {
	r := Report{
		InstallID: l.installID, Primary: l.index.Primary, Newest: l.newest, PrimarySince: l.index.PrimarySince,
		Embedded: l.embedded(), Current: current, Previous: previous,
	}
	for _, tag := range l.tags() {
		root := l.index.RootKeys[tag]
		listed := ListedRootKey{ID: root.ID, URI: root.URI, Settled: tag == l.index.SettledOn}
		for v := uint32(1); v <= l.newest; v++ {
			if len(l.wrapped(v, tag)) > 0 {
				listed.Wraps = append(listed.Wraps, v)
			}
		}
		r.RootKeys = append(r.RootKeys, listed)
	}
	r.Verdict, r.Advice = l.verdict(r)
	return r
}

// verdict says what a report comes to, and what there is to do.
func (l *layout) verdict(r Report) (Verdict, string) {
	settled := l.settledOn()
	opensAll := func(c ConfiguredRootKey) bool {
		opens := slices.DeleteFunc(slices.Clone(c.Opens), func(v uint32) bool { return v > l.index.Primary })
		return len(opens) == int(l.index.Primary)
	}
	byCurrent, byPrevious := opensAll(r.Current), opensAll(r.Previous)
	settledHere := r.Current.is(settled)
	fromPrevious := r.Previous.URI != "" && (r.Previous.URI == settled.URI || r.Previous.ID == settled.ID)
	switch {
	case !byCurrent && !byPrevious:
		return VerdictSealed, l.unsealing(r.Current, r.Previous) + "; managers that run keep serving, and none that starts becomes ready"
	case settledHere && byCurrent && len(r.RootKeys) == 1 && r.Previous.URI != "":
		return VerdictSettled, "--previous-root-key is not needed any more: remove it"
	case settledHere && byCurrent && len(r.RootKeys) == 1:
		return VerdictSettled, "nothing to do"
	case settledHere && byCurrent && r.Previous.URI != "":
		return VerdictKeepsPrevious, "every sealing key opens by the new root key; once every replica says so, remove --previous-root-key: " +
			"what the old root key wrapped is dropped then"
	case settledHere && byCurrent:
		return VerdictChanging, "other root keys wrap the sealing keys too: a manager that starts with these flags drops " +
			"what they wrapped, and one that ran before they were added leaves that to managers with newer flags"
	case settledHere || fromPrevious:
		return VerdictChanging, "the manager goes on by itself; its log says what holds it up"
	default:
		return VerdictElsewhere, fmt.Sprintf("the installation relies on root key %s: set --root-key=%s; to change the root key, "+
			"set the new one as --root-key and %s as --previous-root-key", settled.ID, settled.URI, settled.URI)
	}
}

// unsealing says how a manager comes to a root key that opens the sealing keys, where it has none.
func (l *layout) unsealing(configured ...ConfiguredRootKey) string {
	for _, c := range configured {
		for _, tag := range l.tags() {
			switch root := l.index.RootKeys[tag]; {
			case c.ID == root.ID:
				return fmt.Sprintf("root key %s is the right one by its name, and does not open all of them: see its problem", c.ID)
			case c.URI == root.URI && c.ID == "":
				return fmt.Sprintf("root key %s is the right one, and cannot be opened: bring it back", root.ID)
			case c.URI == root.URI:
				return fmt.Sprintf("another key is in %s: the sealing keys are wrapped by %s, and %s was found: bring the right key back",
					c.URI, root.ID, c.ID)
			}
		}
	}
	settled := l.settledOn()
	return fmt.Sprintf("the sealing keys are wrapped by root key %s: set --root-key=%s", settled.ID, settled.URI)
}

// Inspect reads the Secret with the sealing keys and tries the root keys on every version of them. It writes nothing and makes
// nothing.
func (c Config) Inspect(ctx context.Context) (Report, error) {
	l, err := readSealingKeys(ctx, c.Store)
	if err != nil {
		return Report{}, err
	}
	return l.report(c.inspect(ctx, l, c.RootKey), c.inspect(ctx, l, c.PreviousRootKey)), nil
}

func (c Config) inspect(ctx context.Context, l *layout, uri string) ConfiguredRootKey {
	configured := ConfiguredRootKey{URI: uri}
	if uri == "" {
		return configured
	}
	root, err := c.openRootKey(ctx, uri, false)
	if err != nil {
		configured.Problem = err.Error()
		return configured
	}
	defer func() { _ = root.Close() }()
	configured.ID = root.ID()
	tag := tagOf(root.ID())
	if !l.lists(tag) {
		configured.Problem = "it wraps no sealing key"
	}
	var problems []string
	for v := uint32(1); v <= l.newest; v++ {
		if len(l.wrapped(v, tag)) == 0 {
			continue
		}
		sk, err := l.unwrapEntry(ctx, root, wrappedEntry(v, tag), v)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		sk.material.Destroy()
		configured.opened(v, root, l.wrapped(v, tag))
	}
	if len(problems) > 0 {
		configured.Problem = strings.Join(slices.Compact(problems), "; ")
	}
	return configured
}

// opened notes that a root key has opened a version.
func (c *ConfiguredRootKey) opened(version uint32, root RootKey, wrapped []byte) {
	c.Opens = append(c.Opens, version)
	if teller, ok := root.(KeyTeller); ok {
		if key := teller.KeyOf(wrapped); key != "" {
			if c.Keys == nil {
				c.Keys = map[uint32]string{}
			}
			c.Keys[version] = key
		}
	}
	if staler, ok := root.(Staler); ok && staler.Stale(wrapped) {
		c.Stale = append(c.Stale, version)
	}
}
