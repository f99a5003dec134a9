package client

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

const (
	// DefaultSocket is where a sidecar listens, and what DATAKEYS_SOCKET names in the containers of its pod.
	DefaultSocket = "/run/datakeys/datakeys.sock"

	// DefaultKeyAge is Options.KeyAge where it is 0.
	DefaultKeyAge = 5 * time.Second
	// MinKeyAge is the least that Options.KeyAge may be: time enough to ask again.
	MinKeyAge = time.Second
	// MaxKeyAge is the most that it may be: no more than the sidecar itself goes without asking.
	MaxKeyAge = 15 * time.Second
)

const (
	// maxSocketPath is the longest path of a socket (unix(7), sun_path).
	maxSocketPath = 107
	// maxHeader is the most bytes read of the header of an answer.
	maxHeader = 16 << 10
	// maxAnswer is the most bytes read of an answer that is JSON: a data key with the largest blob and context has some 80 KiB.
	maxAnswer = 256 << 10

	// maxConns is how many connections a Client has at most: the sidecar has 256 for all containers of the pod. As many may be idle, since
	// the buffer of one that net/http drops as one too many is not cleared.
	maxConns = 64
	// idleTime is how long a connection is kept: less than the 2 minutes after which the sidecar closes it.
	idleTime = time.Minute

	mediaJSON    = "application/json"
	mediaProblem = "application/problem+json"
	mediaBytes   = "application/octet-stream"
)

// Options are what a Client may be told. The zero Options are those of an ordinary pod.
type Options struct {
	// Socket is the path of the sidecar's socket, DefaultSocket where it is empty. Pass os.Getenv("DATAKEYS_SOCKET").
	Socket string
	// KeyAge is how long an AEAD uses a data key after it was asked for, DefaultKeyAge where it is 0, MinKeyAge to MaxKeyAge. It is by
	// how much later than the sidecar an AEAD goes by a revocation.
	KeyAge time.Duration
}

// Client asks the sidecar of the pod. It is safe for concurrent use; an application needs one.
type Client struct {
	transport *http.Transport
	keyAge    time.Duration
}

// New returns a Client. It does not dial yet, so the sidecar need not be there.
func New(o Options) (*Client, error) {
	if o.Socket == "" {
		o.Socket = DefaultSocket
	}
	if o.KeyAge == 0 {
		o.KeyAge = DefaultKeyAge
	}
	if !filepath.IsAbs(o.Socket) || len(o.Socket) > maxSocketPath {
		return nil, refusal(ReasonInvalidParameter, "the socket %q: must be an absolute path of at most %d bytes", o.Socket, maxSocketPath)
	}
	if o.KeyAge < MinKeyAge || o.KeyAge > MaxKeyAge {
		return nil, refusal(ReasonInvalidParameter, "the key age %v: must be %v to %v; 0 stands for %v", o.KeyAge, MinKeyAge, MaxKeyAge,
			DefaultKeyAge)
	}
	dialer := &net.Dialer{}
	return newClient(o, func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "unix", o.Socket) }), nil
}

func newClient(o Options, dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{keyAge: o.KeyAge, transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return wipingConn{c}, nil
		},
		DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		MaxConnsPerHost: maxConns, MaxIdleConnsPerHost: maxConns, IdleConnTimeout: idleTime, ResponseHeaderTimeout: silence,
	}}
}

// Close closes the connections that are idle. The Client goes on working; there is no need to call it.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// wipingConn clears the memory that it is to read into. That is the buffer of net/http, which starts to read for the next answer as soon
// as the last has been taken out: so no data key stays in it, unless the connection ends with that answer, as it does where the caller's
// context ends in the middle of it. Larger parts of an answer go past the buffer.
type wipingConn struct{ net.Conn }

// Read implements net.Conn. A reader may use all of p (io.Reader).
func (c wipingConn) Read(p []byte) (int, error) {
	clear(p)
	return c.Conn.Read(p)
}

// call is a request to the sidecar.
type call struct {
	method, path string
	accept       string
	header       http.Header
	body         []byte
	most         int // bytes of an answer
}

// send sends a call. Of an answer that is no success it makes an *Error. The caller must close the body.
func (c *Client) send(ctx context.Context, o call) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, o.method, "http://localhost"+o.path, bytes.NewReader(o.body))
	if err != nil {
		return nil, refusal(ReasonInvalidParameter, "%v", err) // never: names are checked
	}
	if o.header != nil {
		r.Header = o.header
	}
	r.Header.Set("Accept", o.accept)
	r.Header["User-Agent"] = nil
	r.Header["Idempotency-Key"] = []string{} // net/http tries again on a new connection if it meets one that was closed meanwhile
	response, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, failure(ctx, err)
	}
	if response.StatusCode != http.StatusOK {
		defer func() { _ = response.Body.Close() }()
		return nil, problemOf(ctx, response)
	}
	if got := mediaType(response); got != o.accept {
		_ = response.Body.Close()
		return nil, invalidAnswer("it answers %q to %s %s", got, o.method, o.path)
	}
	return response, nil
}

// do sends a call and reads the answer to its end. It may hold a plaintext.
func (c *Client) do(ctx context.Context, o call) ([]byte, error) {
	response, err := c.send(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	return readBody(ctx, response, o.most)
}

// readBody reads an answer into memory that does not move, so that there is no copy to clear.
func readBody(ctx context.Context, response *http.Response, most int) ([]byte, error) {
	if n := response.ContentLength; n < 0 || n > int64(most) {
		return nil, invalidAnswer("its answer has %d bytes, where at most %d are right", n, most)
	}
	body := make([]byte, response.ContentLength)
	if _, err := io.ReadFull(response.Body, body); err != nil {
		clear(body)
		return nil, failure(ctx, err)
	}
	return body, nil
}

// failure is an error of the connection, unless it is the end of the caller's context.
func failure(ctx context.Context, err error) error {
	if ended := context.Cause(ctx); ended != nil {
		return ended
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		// Of another call: net/http may have lent its connection to this one already when it closes it.
		err = errors.New("the connection was closed when another call ended")
	}
	return unreachable(err)
}

// problemOf reads problem details (RFC 9457).
func problemOf(ctx context.Context, response *http.Response) error {
	if got := mediaType(response); got != mediaProblem {
		return invalidAnswer("it answers %s with %q", response.Status, got)
	}
	body, err := readBody(ctx, response, maxAnswer)
	if err != nil {
		return err
	}
	var problem struct {
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal(body, &problem); err != nil {
		return invalidAnswer("it answers %s with what is no JSON", response.Status)
	}
	e := &Error{Status: response.StatusCode, Reason: problem.Reason, Detail: problem.Detail}
	if seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 16); err == nil {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	return e
}

func mediaType(response *http.Response) string {
	media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return media
}

// Encrypt has the sidecar encrypt a plaintext of at most 64 KiB with the newest generation of a data key, and bind it to associated data,
// at most 8192 bytes that are not secret and that whoever decrypts states again; nil is none. The data key stays in the sidecar.
func (c *Client) Encrypt(ctx context.Context, name string, plaintext, associatedData []byte) (ciphertext []byte, err error) {
	return c.crypt(ctx, name, "encrypt", plaintext, associatedData, len(plaintext)+envelope.MessageOverhead)
}

// Decrypt has the sidecar decrypt what Encrypt, or AEAD.Seal, returned, with the generation that the ciphertext names.
func (c *Client) Decrypt(ctx context.Context, name string, ciphertext, associatedData []byte) (plaintext []byte, err error) {
	return c.crypt(ctx, name, "decrypt", ciphertext, associatedData, len(ciphertext))
}

func (c *Client) crypt(ctx context.Context, name, action string, given, associatedData []byte, most int) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := checkAssociated(associatedData); err != nil {
		return nil, err
	}
	header := http.Header{"Content-Type": {mediaBytes}}
	if len(associatedData) > 0 {
		header.Set("Datakeys-Associated-Data", base64.StdEncoding.EncodeToString(associatedData))
	}
	return c.do(ctx, call{
		method: http.MethodPost, path: "/v1/data-keys/" + name + "/" + action, accept: mediaBytes, header: header, body: given, most: most,
	})
}
