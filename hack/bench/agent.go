package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
)

// agentTarget is an agent of Vault or OpenBao before the secrets engine transit: what does for an application most of what a sidecar does. It
// logs in by itself, has a unix socket, and passes on what is asked there.
const agentTarget = "agent -> transit"

const (
	socketAgent  = "agent"
	fileAgent    = "agent.hcl"
	fileRootOfIt = "root-token"
	rootToken    = "bench" // of a server that ends with the run
)

// agentConfig has an address, the file of a CA, that of a token, and a socket.
const agentConfig = `
vault {
  address = %q
  ca_cert = %q
}
auto_auth {
  method "token_file" {
    config = { token_file_path = %q }
  }
}
api_proxy {
  use_auto_auth_token = true
}
listener "unix" {
  address     = %q
  tls_disable = true
}
`

// findAgent returns the path of a binary of OpenBao or Vault, empty where there is none.
func findAgent() string {
	for _, name := range []string{"bao", "vault"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// agent starts a server of that binary, in memory and with TLS on loopback, and an agent. It returns what the agent is asked: to decrypt as
// much as a data key has.
func (r *run) agent(ctx context.Context, binary string) (t target, err error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return t, err
	}
	const ca = "vault-ca.pem" // as the server names it
	socket, home := r.path(socketAgent), []string{"HOME=" + r.dir}
	config := fmt.Appendf(nil, agentConfig, "https://"+address, r.path(ca), r.path(fileRootOfIt), socket)
	if err := errors.Join(
		os.WriteFile(r.path(fileRootOfIt), []byte(rootToken), 0o600),
		os.WriteFile(r.path(fileAgent), config, 0o600),
	); err != nil {
		return t, err
	}
	if _, err := r.process(ctx, home, binary, "server", "-dev", "-dev-tls", "-dev-tls-cert-dir="+r.dir, "-dev-no-store-token",
		"-dev-root-token-id="+rootToken, "-dev-listen-address="+address, "-log-level=error"); err != nil {
		return t, err
	}
	if err := r.await(ctx, func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			err = conn.Close()
		}
		return err
	}); err != nil {
		return t, err
	}
	if r.other, err = r.process(ctx, home, binary, "agent", "-config="+r.path(fileAgent), "-log-level=error"); err != nil {
		return t, err
	}
	if err := r.await(ctx, func() error {
		_, err := once(ctx, socket, post("/v1/sys/mounts/transit", []byte(`{"type":"transit"}`)))
		return err
	}); err != nil {
		return t, err
	}
	if _, err := once(ctx, socket, post("/v1/transit/keys/"+dataKey, nil)); err != nil {
		return t, err
	}
	plaintext := base64.StdEncoding.EncodeToString(make([]byte, keySize))
	made, err := once(ctx, socket, post("/v1/transit/encrypt/"+dataKey, []byte(`{"plaintext":"`+plaintext+`"}`)))
	if err != nil {
		return t, err
	}
	var encrypted struct {
		Data struct {
			Ciphertext string `json:"ciphertext"`
		} `json:"data"`
	}
	if err := json.Unmarshal(made, &encrypted); err != nil {
		return t, err
	}
	return target{agentTarget, empty, socket, post("/v1/transit/decrypt/"+dataKey, []byte(`{"ciphertext":"`+encrypted.Data.Ciphertext+`"}`))}, nil
}

// freeAddress is one of loopback that nobody listens at.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
