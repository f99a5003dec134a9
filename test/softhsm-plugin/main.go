//go:build cgo

// Command softhsm-plugin is a Kubernetes KMS v2 plugin whose keys lie in a token of SoftHSM2, behind PKCS#11. It is for tests,
// which start it as they would start the plugin of an HSM, and rotate, stop and kill it, and for trying one out
// (docs/root-keys.md).
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	kmsv2 "k8s.io/kms/apis/v2"
	"k8s.io/kms/pkg/service"
)

const usage = `softhsm-plugin: a Kubernetes KMS v2 plugin whose keys lie in a token of SoftHSM2, for trials and tests

usage: softhsm-plugin VERB -module SO -token LABEL -pin-file FILE [-socket PATH]

  init      make the token and its first key
  rotate    make another key: the newest encrypts, all of them decrypt
  serve     answer on a unix socket until SIGTERM

  -module SO         the PKCS#11 module, such as /usr/lib/softhsm/libsofthsm2.so
  -token LABEL       the label of the token
  -pin-file FILE     a file with the token's PIN
  -socket PATH       of serve: the socket to listen on; its mode comes from the umask

SoftHSM2 reads from the file that SOFTHSM2_CONF names where its tokens lie.
`

func main() {
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "softhsm-plugin:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || args[0] == "help" || strings.HasPrefix(args[0], "-") {
		return flag.ErrHelp
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the caller says it
	module := flags.String("module", "", "")
	label := flags.String("token", "", "")
	pinFile := flags.String("pin-file", "", "")
	socket := flags.String("socket", "", "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	for name, value := range map[string]string{"module": *module, "token": *label, "pin-file": *pinFile} {
		if value == "" {
			return fmt.Errorf("-%s: must not be empty; --help says more", name)
		}
	}
	if args[0] == "serve" && *socket == "" {
		return errors.New("-socket: must not be empty; --help says more")
	}
	pin, err := os.ReadFile(*pinFile)
	if err != nil {
		return fmt.Errorf("reading the PIN: %w", err)
	}
	pin = bytes.TrimSpace(pin)

	switch args[0] {
	case "init":
		if err := initToken(*module, *label, string(pin)); err != nil {
			return fmt.Errorf("making token %s: %w", *label, err)
		}
		fallthrough
	case "rotate":
		t, err := openToken(*module, *label, string(pin))
		if err != nil {
			return err
		}
		defer t.close()
		return t.rotate()
	case "serve":
		t, err := openToken(*module, *label, string(pin))
		if err != nil {
			return err
		}
		defer t.close()
		return serve(t, *socket)
	}
	return fmt.Errorf("%q: say init, rotate or serve", args[0])
}

// serve answers on the socket until SIGTERM. It says so on stdout once it listens.
func serve(t *token, socket string) error {
	// The one before may have been killed.
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	kmsv2.RegisterKeyManagementServiceServer(server, service.NewGRPCService(socket, time.Second, plugin{t}))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		server.GracefulStop()
	}()
	fmt.Println("serving")
	return server.Serve(listener)
}
