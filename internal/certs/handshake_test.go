package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
)

// handshake connects a client that trusts these roots, and returns the certificate that it was shown.
func handshake(t *testing.T, server *tls.Config, clk clock.PassiveClock, roots []byte, name string, change func(*tls.Config)) (*x509.Certificate, error) {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		t.Fatal("the bundle holds no certificate")
	}
	config := &tls.Config{RootCAs: pool, ServerName: name, Time: clk.Now}
	if change != nil {
		change(config)
	}
	// Not net.Pipe: both sides of a failed handshake may be writing, which only a buffer lets end.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = tls.Server(conn, server).HandshakeContext(t.Context())
			_ = conn.Close()
		}
		served <- err
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := tls.Client(conn, config)
	err = client.HandshakeContext(t.Context())
	_ = conn.Close()
	if serverErr := <-served; err != nil {
		return nil, errors.Join(err, serverErr)
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

// TestHandshakesAcrossRotations: at each moment, a pod of every earlier moment that is less than four years back connects.
func TestHandshakesAcrossRotations(t *testing.T) {
	authority, clock := newTestAuthority(t, &memoryStore{})
	server := authority.ServerTLSConfig(ServiceDNSNames("key-service", "system")...)
	const name = "key-service.system.svc"
	type pod struct {
		created time.Duration
		roots   []byte
	}
	var pods []pod
	connected, refused := 0, 0
	for at := time.Duration(0); at < 25*year; at += year / 3 {
		clock.SetTime(epoch.Add(at))
		mustSync(t, authority)
		pods = append(pods, pod{at, authority.RootsPEM()})
		for _, pod := range pods {
			_, err := handshake(t, server, clock, pod.roots, name, nil)
			switch age := at - pod.created; {
			case err == nil:
				connected++
			case age < 4*year:
				t.Fatalf("year %.2f: a pod of year %.2f does not connect: %v", years(at), years(pod.created), err)
			default:
				refused++
			}
		}
	}
	// Without refusals the promise would not be put to the test.
	if connected == 0 || refused == 0 {
		t.Errorf("%d connected and %d were refused, want some of each", connected, refused)
	}
	t.Logf("%d connected, %d older ones were refused", connected, refused)
}

func TestHandshake(t *testing.T) {
	authority, clock := newTestAuthority(t, &memoryStore{})
	stranger, _ := newTestAuthority(t, &memoryStore{})
	mustSync(t, authority, stranger)
	server := authority.ServerTLSConfig(ServiceDNSNames("key-service", "system")...)
	for name, test := range map[string]struct {
		serverName string
		roots      []byte
		change     func(*tls.Config)
		fails      bool
	}{
		"the Service's name":                       {serverName: "key-service"},
		"its name with the namespace":              {serverName: "key-service.system"},
		"its name with svc":                        {serverName: "key-service.system.svc"},
		"its name with the cluster's domain":       {serverName: "key-service.system.svc.cluster.local"},
		"a clock that is an hour behind":           {serverName: "key-service", change: shift(-clockSkew)},
		"a clock that is more than an hour behind": {serverName: "key-service", change: shift(-clockSkew - time.Minute), fails: true},
		"a clock that is more than a day ahead":    {serverName: "key-service", change: shift(leafLifetime + time.Minute), fails: true},
		"the name of another namespace":            {serverName: "key-service.other.svc", fails: true},
		"the roots of another installation":        {serverName: "key-service", roots: stranger.RootsPEM(), fails: true},
		"TLS 1.2":                                  {serverName: "key-service", change: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			roots := test.roots
			if roots == nil {
				roots = authority.RootsPEM()
			}
			leaf, err := handshake(t, server, clock, roots, test.serverName, test.change)
			if (err != nil) != test.fails {
				t.Fatalf("got %v, want an error: %v", err, test.fails)
			}
			if err == nil && (leaf.IsCA || leaf.NotAfter.Sub(clock.Now()) != leafLifetime || leaf.PublicKeyAlgorithm != x509.ECDSA) {
				t.Errorf("the leaf: CA %v, valid for %v, %v", leaf.IsCA, leaf.NotAfter.Sub(clock.Now()), leaf.PublicKeyAlgorithm)
			}
		})
	}
}

func TestHandshakeWithoutRoots(t *testing.T) {
	authority, clock := newTestAuthority(t, &memoryStore{})
	other, _ := newTestAuthority(t, &memoryStore{})
	mustSync(t, other)
	if _, err := handshake(t, authority.ServerTLSConfig("a"), clock, other.RootsPEM(), "a", nil); err == nil {
		t.Error("a server without roots completes a handshake")
	}
}

// TestLeafRenewal follows the leaf of one server, and the serial numbers say when it is another.
func TestLeafRenewal(t *testing.T) {
	authority, clock := newTestAuthority(t, &memoryStore{})
	mustSync(t, authority)
	server := authority.ServerTLSConfig("a")
	show := func(at time.Duration) *x509.Certificate {
		t.Helper()
		clock.SetTime(epoch.Add(at))
		mustSync(t, authority)
		leaf, err := handshake(t, server, clock, authority.RootsPEM(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		return leaf
	}
	first := show(0)
	for _, step := range []struct {
		why   string
		at    time.Duration
		other bool
	}{
		{"again at once", 0, false},
		{"before two thirds of its life", leafRenewAfter - time.Second, false},
		{"after two thirds of its life", leafRenewAfter, true},
		{"the clock was set back by an hour", leafRenewAfter - time.Hour, true},
		{"just before the successor signs", 9*year + day - time.Hour, true},
		{"when the successor signs", 9*year + 2*day, true},
		{"a little later", 9*year + 2*day + time.Hour, false},
	} {
		next := show(step.at)
		if other := next.SerialNumber.Cmp(first.SerialNumber) != 0; other != step.other {
			t.Errorf("%s: another leaf: %v, want %v", step.why, other, step.other)
		}
		first = next
	}
}

// TestLeafAgesByTheWallClock: no verifier knows the monotonic clock, which neither jumps nor runs while a machine is suspended. Only the
// real clock has one.
func TestLeafAgesByTheWallClock(t *testing.T) {
	authority := NewAuthority(&memoryStore{}, nil, logr.Discard())
	mustSync(t, authority)
	source := &leaves{authority: authority, dnsNames: []string{"a"}}
	if _, err := source.get(nil); err != nil {
		t.Fatal(err)
	}
	if minted := source.minted.String(); strings.Contains(minted, "m=") {
		t.Errorf("the age counts from %s, a time of the monotonic clock", minted)
	}
}

// TestLeafOfTheSuccessor: the moment that a successor signs, the next handshake shows a leaf under it, however young the
// old one is.
func TestLeafOfTheSuccessor(t *testing.T) {
	authority, clock := newTestAuthority(t, &memoryStore{})
	mustSync(t, authority)
	clock.SetTime(epoch.Add(5*year + time.Minute))
	mustSync(t, authority)
	server := authority.ServerTLSConfig("a")
	roots := authority.known()
	moment := handover(roots[0], roots[1])
	for i, at := range []time.Time{moment.Add(-time.Second), moment} {
		clock.SetTime(at)
		if _, err := handshake(t, server, clock, roots[i].pem(), "a", nil); err != nil {
			t.Errorf("at %v a leaf under root %d is due: %v", at, roots[i].number, err)
		}
	}
}

// TestReplicasServeTheSame: a client of one replica's roots connects to another.
func TestReplicasServeTheSame(t *testing.T) {
	store := &memoryStore{}
	one, clock := newTestAuthority(t, store)
	two := NewAuthority(store, clock, one.logger)
	mustSync(t, one, two)
	if !bytes.Equal(one.RootsPEM(), two.RootsPEM()) {
		t.Error("the bundles differ")
	}
	if _, err := handshake(t, two.ServerTLSConfig("a"), clock, one.RootsPEM(), "a", nil); err != nil {
		t.Error(err)
	}
}

func shift(d time.Duration) func(*tls.Config) {
	return func(c *tls.Config) {
		now := c.Time
		c.Time = func() time.Time { return now().Add(d) }
	}
}
