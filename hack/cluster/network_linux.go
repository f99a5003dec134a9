package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// linkNetworks is where the /30 networks between host and nodes come from: addresses for tests of network devices
// (RFC 2544), which no machine should meet elsewhere.
var linkNetworks = netip.MustParsePrefix("198.18.0.0/15")

// A network is the namespace of a node and the veth pair that joins it to the host.
type network struct {
	namespace string
	link      string // the host's end; the node's is eth0
	host      netip.Addr
	node      netip.Addr
}

func (w *network) path() string { return filepath.Join(netnsDir, w.namespace) }

// openNetwork looks whether the network is there as a whole, and takes its addresses from it.
func openNetwork(id string) (w *network, whole bool, err error) {
	w = &network{namespace: "datakeys-" + id, link: "dk" + id}
	var s unix.Statfs_t
	if err := unix.Statfs(w.path(), &s); err != nil || s.Type != unix.NSFS_MAGIC {
		return w, false, ignoreNotExist(err)
	}
	addresses, up, err := linkAddresses(w.link)
	if err != nil || !up {
		return w, false, err
	}
	for _, a := range addresses {
		if linkNetworks.Contains(a) {
			w.host, w.node = a, a.Next()
		}
	}
	if !w.host.IsValid() {
		return w, false, nil
	}
	err = w.within(func() error {
		addresses, up, err := linkAddresses("eth0")
		whole = up && slices.Contains(addresses, w.node)
		return err
	})
	return w, whole, err
}

// linkAddresses returns the addresses of a link of the current namespace, and whether it is there and up.
func linkAddresses(name string) (addresses []netip.Addr, up bool, err error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, false, err
	}
	i := slices.IndexFunc(links, func(l net.Interface) bool { return l.Name == name && l.Flags&net.FlagUp != 0 })
	if i < 0 {
		return nil, false, nil
	}
	found, err := links[i].Addrs()
	for _, a := range found {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			addresses = append(addresses, prefix.Addr())
		}
	}
	return addresses, true, err
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// make builds the network anew.
func (w *network) make(ctx context.Context, id string) error {
	if err := w.remove(ctx); err != nil {
		return err
	}
	taken, err := hostNetworks()
	if err != nil {
		return err
	}
	if w.host, w.node, err = chooseAddresses(id, taken); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"netns", "add", w.namespace},
		{"-n", w.namespace, "link", "set", "lo", "up"},
		{"link", "add", w.link, "type", "veth", "peer", "name", "eth0", "netns", w.namespace},
		{"-n", w.namespace, "addr", "add", w.node.String() + "/30", "dev", "eth0"},
		{"-n", w.namespace, "link", "set", "eth0", "up"},
		{"-n", w.namespace, "route", "add", "default", "via", w.host.String()},
		// The host's address comes last: it is the sign that all is there.
		{"link", "set", w.link, "up"},
		{"addr", "add", w.host.String() + "/30", "dev", w.link},
	} {
		if err := ip(ctx, args...); err != nil {
			return err
		}
	}
	return w.within(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	})
}

// remove takes the network away, whatever there is of it.
func (w *network) remove(ctx context.Context) error {
	if _, err := net.InterfaceByName(w.link); err == nil {
		if err := ip(ctx, "link", "del", w.link); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(w.path()); err == nil {
		return ip(ctx, "netns", "del", w.namespace)
	}
	return nil
}

// within runs a function in the network namespace. Processes that it starts stay there.
func (w *network) within(do func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread is in the wrong namespace for everybody else and ends with this goroutine.
		runtime.LockOSThread()
		fd, err := unix.Open(w.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open network namespace %s: %w", w.namespace, err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s: %w", w.namespace, err)
			return
		}
		done <- do()
	}()
	return <-done
}

func hostNetworks() ([]netip.Prefix, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var networks []netip.Prefix
	for _, a := range addresses {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			networks = append(networks, prefix.Masked())
		}
	}
	return networks, nil
}

// chooseAddresses picks the cluster's /30 by its ID, or the next that no other network of the host overlaps.
func chooseAddresses(id string, taken []netip.Prefix) (host, node netip.Addr, err error) {
	seed, err := hex.DecodeString(id)
	if err != nil || len(seed) < 4 {
		return host, node, fmt.Errorf("cluster ID %q is not eight hexadecimal digits", id)
	}
	count := uint32(1) << (30 - linkNetworks.Bits())
	base := linkNetworks.Addr().As4()
	for i := range count {
		offset := (binary.BigEndian.Uint32(seed) + i) % count * 4
		var address [4]byte
		binary.BigEndian.PutUint32(address[:], binary.BigEndian.Uint32(base[:])+offset)
		candidate := netip.PrefixFrom(netip.AddrFrom4(address), 30)
		free := true
		for _, t := range taken {
			free = free && !t.Overlaps(candidate)
		}
		if free {
			host = candidate.Addr().Next()
			return host, host.Next(), nil
		}
	}
	return host, node, fmt.Errorf("every network in %s overlaps one that the host has", linkNetworks)
}

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
