package rootkey

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/seal"
)

const schemeKMSv2 = "kmsv2"

// kmsv2Root is a root key behind a Kubernetes KMS v2 plugin: an HSM or a cloud's key service that a process on the node
// speaks for, on a unix socket. Contract: k8s.io/kms, apis/v2/api.proto, and
// https://kubernetes.io/docs/tasks/administer-cluster/kms-provider/.
//
// The plugin may rotate its key at any time. What was wrapped before names the key_id it was wrapped under, still unwraps, and
// is stale. The ID of the root key is the socket's path: the plugin behind it may not be replaced by one that does not know
// its keys. A migration to another plugin goes by another path.
type kmsv2Root struct {
	socket string
	plugin *plugin
	status *pluginStatus

	stop   context.CancelFunc
	polled sync.WaitGroup
}

// openKMSv2Root connects to the plugin that listens on the unix socket of that path, and asks for its Status until it is closed.
func openKMSv2Root(ctx context.Context, socket string, log logr.Logger) (seal.RootKey, error) {
	r, err := openKMSv2RootBy(ctx, socket, log, pluginTimeout, time.After)
	if err != nil {
		return nil, err // and not a RootKey that holds a nil pointer
	}
	return r, nil
}

// openKMSv2RootBy is openKMSv2Root with the time-out of a call and a clock to poll by.
func openKMSv2RootBy(
	ctx context.Context, socket string, log logr.Logger, timeout time.Duration, after func(time.Duration) <-chan time.Time,
) (*kmsv2Root, error) {
	p, err := dialPlugin(socket, timeout)
	if err != nil {
		return nil, fmt.Errorf("root key %s://%s: %w", schemeKMSv2, socket, err)
	}
	r := &kmsv2Root{socket: socket, plugin: p, status: &pluginStatus{log: log.WithValues("socket", socket)}}
	keyID, err := p.status(ctx)
	if err == nil {
		_, err = r.status.observe(keyID, nil)
	}
	if err != nil {
		_ = p.close()
		return nil, r.failed(err) // not logged here: whoever opens tries again and again, and says so
	}
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx)) // ctx bounds the opening alone
	r.polled.Go(func() { r.status.poll(ctx, p.status, after) })
	return r, nil
}

func (r *kmsv2Root) ID() string { return schemeKMSv2 + "://" + r.socket }

// Close ends the polling and the connection. What is called afterwards fails.
func (r *kmsv2Root) Close() error {
	r.stop()
	r.polled.Wait()
	return r.plugin.close()
}

// Wrap encrypts p and a digest that binds ad to it, under the key that the plugin names at this moment.
func (r *kmsv2Root) Wrap(ctx context.Context, p envelope.Plaintext, ad []byte) ([]byte, error) {
	keyID, err := r.status.ask(ctx, r.plugin.status)
	if err != nil {
		return nil, r.failed(err)
	}
	bound := p.AppendTo(insecuresecret.Token{}, make([]byte, sha256.Size, sha256.Size+p.Len()))
	defer clear(bound)
	secret := bound[sha256.Size:]
	if len(secret) == 0 {
		return nil, envelope.ErrDestroyed
	}
	binding := bindingOf(secret, ad)
	copy(bound, binding[:])
	w, err := r.plugin.encrypt(ctx, keyID, bound)
	if err != nil {
		return nil, r.failed(err)
	}
	wrapped := w.marshal()
	if len(secret) >= 16 { // a few bytes can be there by chance
		if form := plainForm(wrapped, secret); form != "" {
			return nil, r.failed(fmt.Errorf("%w: Encrypt: the answer holds the plaintext %s", ErrPluginAnswer, form))
		}
	}
	return wrapped, nil
}

// Unwrap has the plugin decrypt what Wrap returned, whichever key it has now. Whatever it answers, only what was wrapped comes
// back: another plaintext does not fit its digest.
func (r *kmsv2Root) Unwrap(ctx context.Context, wrapped, ad []byte) (envelope.Plaintext, error) {
	w, err := parsePluginWrapped(wrapped)
	if err != nil {
		return envelope.Plaintext{}, err
	}
	bound, err := r.plugin.decrypt(ctx, w)
	defer clear(bound)
	if err != nil {
		return envelope.Plaintext{}, r.failed(err)
	}
	if n := len(bound); n <= sha256.Size || n > sha256.Size+envelope.MaxPlaintextSize {
		return envelope.Plaintext{}, envelope.ErrBroken
	}
	secret := bound[sha256.Size:]
	binding := bindingOf(secret, ad)
	if subtle.ConstantTimeCompare(bound[:sha256.Size], binding[:]) != 1 {
		return envelope.Plaintext{}, envelope.ErrBroken
	}
	return envelope.PlaintextFromBytes(secret)
}

// Stale reports whether wrapped was wrapped under another key than the plugin has now, and so should be wrapped anew. It still
// unwraps, for as long as the plugin knows the old key.
func (r *kmsv2Root) Stale(wrapped []byte) bool {
	w, err := parsePluginWrapped(wrapped)
	return err == nil && w.keyID != r.status.current()
}

// KeyOf returns the key_id under which the plugin wrapped it.
func (r *kmsv2Root) KeyOf(wrapped []byte) string {
	w, err := parsePluginWrapped(wrapped)
	if err != nil {
		return ""
	}
	return quote(w.keyID)
}

func (r *kmsv2Root) failed(err error) error { return fmt.Errorf("root key %s: %w", r.ID(), err) }

// bindingOf is what stands in front of a plaintext that a plugin encrypts. The protocol knows no associated data, and plugins
// need not authenticate what they encrypt; the digest of both does either: within what is encrypted nobody can fit it to other
// associated data or another plaintext, and an answer that is not the plaintext is seen.
//
//	SHA-256(label | size of ad in 8 bytes, big-endian | ad | plaintext)
//
// The hash, and the stack that it works on, keep the end of what went through it. So zeros go the same way: before, lest the stack
// has to grow, and is left behind, while the plaintext is on it; and after, over every place where the plaintext was.
func bindingOf(plaintext, ad []byte) (binding [sha256.Size]byte) {
	h, zeros := sha256.New(), make([]byte, len(plaintext))
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(ad)))
	var sums [3][sha256.Size]byte
	for i, p := range [...][]byte{zeros, plaintext, zeros} {
		h.Reset()
		h.Write([]byte(pluginBindingLabel))
		h.Write(size[:])
		h.Write(ad)
		h.Write(p)
		h.Sum(sums[i][:0])
	}
	return sums[1]
}

const pluginBindingLabel = "datakeys.io/kmsv2/binding/v1\x00"

var (
	_ seal.Staler    = (*kmsv2Root)(nil)
	_ seal.KeyTeller = (*kmsv2Root)(nil)
)
