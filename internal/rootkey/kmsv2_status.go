package rootkey

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// How long after a Status the next one is asked for. They are the API server's intervals for KMS plugins.
const (
	pluginPollHealthy   = time.Minute
	pluginPollUnhealthy = 10 * time.Second
)

// maxPastKeyIDs bounds the memory of key_ids that a plugin gave up: more than 80 years of a rotation a month, and no matter
// where a plugin names another with every Status.
const maxPastKeyIDs = 1000

// errKeyIDReused is the problem with a plugin that goes back to a key_id which it gave up.
var errKeyIDReused = errors.New("the plugin went back to a key_id that it gave up, which the contract forbids: " +
	"have it rotate to a key with a new key_id, or restart this process if the old key is wanted")

// pluginStatus is what is known of a plugin from its Status: how it is, and under which key_id it encrypts. It logs what
// changes, and no Status that says the same as the one before.
type pluginStatus struct {
	log logr.Logger

	asking sync.Mutex // held from a question to its answer: answers that overtake each other would look like a key_id that flips back

	mu      sync.Mutex
	keyID   string
	past    [][sha256.Size]byte // of key_ids that were given up
	problem string              // of the last Status; empty while healthy
}

// ask asks for the Status and returns the key_id, or why what the plugin says now cannot be used.
func (s *pluginStatus) ask(ctx context.Context, status func(context.Context) (string, error)) (keyID string, err error) {
	s.asking.Lock()
	defer s.asking.Unlock()
	keyID, err = status(ctx)
	if ctx.Err() != nil {
		return "", ctx.Err() // that says something of the caller, and nothing of the plugin
	}
	return s.observe(keyID, err)
}

func (s *pluginStatus) observe(keyID string, err error) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && slices.Contains(s.past, sha256.Sum256([]byte(keyID))) {
		err = fmt.Errorf("%w: Status: key_id %s: %w", ErrPluginAnswer, digest(keyID), errKeyIDReused)
	}
	if err != nil {
		if s.problem != err.Error() {
			s.problem = err.Error()
			s.log.Error(err, "The KMS plugin is not healthy")
		}
		return "", err
	}
	if s.problem != "" {
		s.problem = ""
		s.log.Info("The KMS plugin is healthy again", "keyID", digest(keyID))
	}
	if s.keyID != keyID {
		if s.keyID != "" {
			s.past = append(s.past, sha256.Sum256([]byte(s.keyID)))
			s.past = s.past[max(0, len(s.past)-maxPastKeyIDs):]
			s.log.Info("The KMS plugin has a new key; what was wrapped before still opens and is stale",
				"keyID", digest(keyID), "before", digest(s.keyID))
		}
		s.keyID = keyID
	}
	return keyID, nil
}

// current returns the newest key_id that was not given up, whatever became of the plugin since.
func (s *pluginStatus) current() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keyID
}

func (s *pluginStatus) interval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem != "" {
		return pluginPollUnhealthy
	}
	return pluginPollHealthy
}

// poll asks for the Status again and again until ctx ends.
func (s *pluginStatus) poll(ctx context.Context, status func(context.Context) (string, error), after func(time.Duration) <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-after(s.interval()):
			_, _ = s.ask(ctx, status) // observe has logged it
		}
	}
}

// digest names a key_id in logs and errors. It may be long, and hold what does not belong there.
func digest(keyID string) string {
	sum := sha256.Sum256([]byte(keyID))
	return "sha256:" + hex.EncodeToString(sum[:8])
}
