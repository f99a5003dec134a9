package rootkey

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/uuid"
	kmsv2 "k8s.io/kms/apis/v2"
)

var (
	// ErrPluginFailed is what a call of a KMS plugin returns that brought no answer: nobody listens, time ran out, or the plugin
	// refused. It is worth another try.
	ErrPluginFailed = errors.New("the KMS plugin gives no answer")
	// ErrPluginAnswer is what a call of a KMS plugin returns for an answer that breaks the contract. Nothing of the answer was
	// used. It is worth another try, once the plugin is mended.
	ErrPluginAnswer = errors.New("the KMS plugin breaks the contract of Kubernetes KMS v2")
)

const (
	// pluginTimeout ends a call, connecting included. It is the API server's default for KMS plugins.
	pluginTimeout = 3 * time.Second

	// maxPluginMessage is more than the bytes of any answer that keeps the contract: annotations, beside which protobuf needs
	// 10 bytes an annotation of 3 or more, key_id and ciphertext. A larger one is refused by its length, unread.
	maxPluginMessage = 192 * 1024
	// maxPluginHeaders is for the headers of an answer, the text of an error among them.
	maxPluginHeaders = 16 * 1024

	// maxPluginBackoff bounds the time between two attempts to connect. It is less than pluginTimeout, so that every call sees
	// an attempt of its own and a plugin that was restarted is found at once.
	maxPluginBackoff = time.Second

	// maxSocketPath is the size of the longest path of a unix socket (unix(7): sun_path, without its zero byte).
	maxSocketPath = 107
)

// plugin is the client of one KMS plugin: three calls that return in time, with an answer that keeps the contract or an error.
// The text of a plugin's errors is not passed on for calls that carry secrets: it could quote them.
type plugin struct {
	conn    *grpc.ClientConn
	client  kmsv2.KeyManagementServiceClient
	timeout time.Duration
}

// dialPlugin returns a client of the plugin that listens on the unix socket of that path. It does not connect yet.
func dialPlugin(socket string, timeout time.Duration) (*plugin, error) {
	if !filepath.IsAbs(socket) || filepath.Clean(socket) != socket || len(socket) > maxSocketPath || strings.ContainsRune(socket, 0) {
		// Not an abstract socket either: whoever comes first may listen there.
		return nil, fmt.Errorf("must be the absolute path of a unix socket in its shortest form, of at most %d bytes", maxSocketPath)
	}
	conn, err := grpc.NewClient("passthrough:///kms-plugin",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // who may reach the socket is for its directory to say
		grpc.WithAuthority("localhost"),
		grpc.WithDisableServiceConfig(),
		grpc.WithMaxHeaderListSize(maxPluginHeaders),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: maxPluginBackoff},
			MinConnectTimeout: pluginTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPluginMessage), grpc.WaitForReady(true)),
	)
	if err != nil {
		return nil, err
	}
	return &plugin{conn: conn, client: kmsv2.NewKeyManagementServiceClient(conn), timeout: timeout}, nil
}

func (p *plugin) close() error { return p.conn.Close() }

// status returns the key_id of the key that the plugin encrypts with now.
func (p *plugin) status(ctx context.Context) (keyID string, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	answer, err := p.client.Status(ctx, &kmsv2.StatusRequest{})
	if err != nil {
		return "", fmt.Errorf("%w: Status: %v: %s", ErrPluginFailed, status.Code(err), quote(status.Convert(err).Message()))
	}
	// The contract knows both spellings and holds them for the same.
	if v := answer.GetVersion(); v != "v2" && v != "v2beta1" {
		return "", fmt.Errorf("%w: Status: version %s: must be v2", ErrPluginAnswer, quote(v))
	}
	if health := answer.GetHealthz(); health != "ok" {
		return "", fmt.Errorf("%w: Status: it says of itself that it is not healthy: %s", ErrPluginFailed, quote(health))
	}
	if problem := checkPluginKeyID(answer.GetKeyId()); problem != "" {
		return "", fmt.Errorf("%w: Status: %s", ErrPluginAnswer, problem)
	}
	return answer.GetKeyId(), nil
}

// encrypt has the plugin encrypt b with its key of that key_id.
func (p *plugin) encrypt(ctx context.Context, keyID string, b []byte) (pluginWrapped, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	answer, err := p.client.Encrypt(ctx, &kmsv2.EncryptRequest{Plaintext: b, Uid: string(uuid.NewUUID())})
	if err != nil {
		return pluginWrapped{}, refusal("Encrypt", err)
	}
	w := pluginWrapped{keyID: answer.GetKeyId(), ciphertext: answer.GetCiphertext(), annotations: answer.GetAnnotations()}
	if problem := w.check(); problem != "" {
		return pluginWrapped{}, fmt.Errorf("%w: Encrypt: %s", ErrPluginAnswer, problem)
	}
	if w.keyID != keyID {
		return pluginWrapped{}, fmt.Errorf("%w: Encrypt: key_id (%s) is not that of Status (%s): the answer is discarded",
			ErrPluginAnswer, digest(w.keyID), digest(keyID))
	}
	return w, nil
}

// decrypt has the plugin decrypt what it encrypted. Clearing the bytes is up to the caller.
func (p *plugin) decrypt(ctx context.Context, w pluginWrapped) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	answer, err := p.client.Decrypt(ctx, &kmsv2.DecryptRequest{
		Ciphertext: w.ciphertext, Uid: string(uuid.NewUUID()), KeyId: w.keyID, Annotations: w.annotations,
	})
	if err != nil {
		return nil, refusal("Decrypt", err)
	}
	return answer.GetPlaintext(), nil
}

func refusal(call string, err error) error {
	return fmt.Errorf("%w: %s: %v: its own log says more", ErrPluginFailed, call, status.Code(err))
}

// quote makes the words of a plugin fit for one line of a log.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		return fmt.Sprintf("%q and %d bytes more", s[:most], len(s)-most)
	}
	return fmt.Sprintf("%q", s)
}
