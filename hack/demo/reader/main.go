// Command reader is the application of the demo's pods: it asks the socket for a data key, as
// curl --unix-socket would, and prints the SHA-256 of the key. It never prints the key.
//
//	reader URL         asks once; ends with 1 where the answer is not 200
//	reader stay URL    asks once, as soon as the socket is there, and then stays until it is told to end
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// socketVariable is the variable by which the injector tells a container where its socket is. The program imports nothing
// of the project, because an application needs nothing of it.
const socketVariable = "DATAKEYS_SOCKET"

// maxAnswer bounds what is read of an answer. The longest, a data key of 1024 bytes with its blob and the largest
// encryption context, is far below.
const maxAnswer = 64 << 10

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Getenv(socketVariable), os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string, socket string, out io.Writer) error {
	switch {
	case socket == "":
		return errors.New(socketVariable + ` is not set: this container has no sidecar; give its pod the label datakeys.io/inject: "true"`)
	case len(arguments) == 2 && arguments[0] == "stay":
		return stay(ctx, socket, arguments[1], out)
	case len(arguments) == 1 && arguments[0] != "stay":
		return ask(ctx, socket, arguments[0], out)
	default:
		return errors.New("usage: reader [stay] URL, for example reader http://localhost/v1/data-keys/orders")
	}
}

// stay asks until there was an answer, whatever it was, and then waits for the end: a pod that is refused its key stays up
// to be looked at.
func stay(ctx context.Context, socket, url string, out io.Writer) error {
	for {
		err := ask(ctx, socket, url, out)
		if err != nil {
			fmt.Fprintln(out, err)
		}
		if !errors.Is(err, errNoSocket) {
			<-ctx.Done()
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// errNoSocket: nobody listens on the socket yet. It happens only to pods that do not wait for their keys.
var errNoSocket = errors.New("the socket does not answer yet")

// dataKey is what the demo shows of an answer.
type dataKey struct {
	Name       string `json:"name"`
	Generation int    `json:"generation"`
	KeyID      string `json:"keyId"`
	KeyVersion int    `json:"keyVersion"`
	Plaintext  []byte `json:"plaintext"`
}

// ask makes one request over the socket and prints what came back, a plaintext key as its SHA-256.
func ask(ctx context.Context, socket, url string, out io.Writer) error {
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var dialer net.Dialer
				connection, err := dialer.DialContext(ctx, "unix", socket)
				if err != nil {
					return nil, fmt.Errorf("%w: %w", errNoSocket, err)
				}
				return connection, nil
			},
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		// Problem details (RFC 9457): they hold no key.
		return fmt.Errorf("HTTP %d %s %s", response.StatusCode, response.Header.Get("Content-Type"), bytes.TrimSpace(body))
	}
	var key dataKey
	if err := json.Unmarshal(body, &key); err != nil {
		// The decoder's error may quote the answer, and the answer may hold a key.
		return errors.New("the answer is not the JSON of a data key")
	}
	if len(key.Plaintext) == 0 {
		return errors.New("the answer holds no plaintext")
	}
	_, err = fmt.Fprintf(out, "data key %s, generation %d, %d bytes, wrapped by version %d of master key %s\nsha256 %x\n",
		key.Name, key.Generation, len(key.Plaintext), key.KeyVersion, key.KeyID, sha256.Sum256(key.Plaintext))
	return err
}
