//go:build cgo

// Command softhsm-plugin is a Kubernetes KMS v2 plugin whose keys lie in a token of SoftHSM2, behind PKCS#11. It is for tests:
// they start it as they would start the plugin of an HSM, and rotate, stop and kill it.
//
//	softhsm-plugin init   -module SO -token LABEL -pin-file FILE    makes the token and its first key
//	softhsm-plugin rotate -module SO -token LABEL -pin-file FILE    makes another key; the newest encrypts
//	softhsm-plugin serve  -module SO -token LABEL -pin-file FILE -socket PATH
//
// Where the tokens lie, SoftHSM2 reads from the file that SOFTHSM2_CONF names.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc"
	kmsv2 "k8s.io/kms/apis/v2"
	"k8s.io/kms/pkg/service"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "softhsm-plugin:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say init, rotate or serve")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	module := flags.String("module", "", "the PKCS#11 module: libsofthsm2.so")
	label := flags.String("token", "", "the label of the token")
	pinFile := flags.String("pin-file", "", "the file with the token's PIN")
	socket := flags.String("socket", "", "the unix socket to listen on")
	if err := flags.Parse(args[1:]); err != nil {
		return err
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
