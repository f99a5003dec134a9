package porttest

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

func TestReserve(t *testing.T) {
	port := Reserve(t)
	for range 3 {
		if err := bindAlone(t, port.Port()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("somebody else is bound to it: got %v, want %v", err, syscall.EADDRINUSE)
		}
		checkRefused(t, port)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", port.String())
		if err != nil {
			t.Fatalf("who names the port cannot listen: %v", err)
		}
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", port.String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _, _ = accepted.Close(), c.Close(), l.Close() // the server first: it leaves a connection in TIME_WAIT
		checkRefused(t, port)
	}
}

// bindAlone binds a socket as the kernel does for whoever asks for any port: with nobody else on it.
func bindAlone(t *testing.T, port uint16) error {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(socket)
	return syscall.Bind(socket, &syscall.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
}

func checkRefused(t *testing.T, port netip.AddrPort) {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", port.String())
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want %v while nobody listens", err, syscall.ECONNREFUSED)
	}
}
