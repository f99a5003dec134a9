// Package porttest reserves ports for tests that must know one before anybody listens on it, or listen on the same one again.
package porttest

import (
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// Reserve returns a port of loopback on which whoever names it may listen, as often as they like, until the test ends. Nobody else is given
// it meanwhile, by listening on any port or by connecting from any: a socket that is bound to it and does not listen keeps Linux from
// that, and lets a listener in, since both set SO_REUSEADDR as net.Listen does. Nobody who connects to it is answered by that socket.
func Reserve(t testing.TB) netip.AddrPort {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { _ = syscall.Close(socket) })
	loopback := [4]byte{127, 0, 0, 1}
	if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: loopback}); err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	bound, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	return netip.AddrPortFrom(netip.AddrFrom4(loopback), uint16(bound.(*syscall.SockaddrInet4).Port))
}
