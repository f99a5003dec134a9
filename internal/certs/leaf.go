package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync"
	"time"
)

// ServiceDNSNames are the names by which pods reach a Service: the short ones, and those with .svc and
// .svc.cluster.local. Kubernetes, "DNS for Services and Pods".
func ServiceDNSNames(service, namespace string) []string {
	return []string{
		service,
		service + "." + namespace,
		service + "." + namespace + ".svc",
		service + "." + namespace + ".svc.cluster.local",
	}
}

// leaves hands out the leaf of one server, and mints the next in time.
type leaves struct {
	authority *Authority
	dnsNames  []string

	mu      sync.Mutex
	current *tls.Certificate
	signer  *root
	minted  time.Time
}

// get is for tls.Config.GetCertificate.
func (l *leaves) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	// Of the wall clock alone: the monotonic one neither jumps with it nor runs while a machine is suspended, and the leaf would be shown
	// when it is not valid yet, or not any more.
	now := l.authority.clock.Now().Round(0)
	signing := l.authority.plan().signing
	if signing == nil {
		return nil, errors.New("there is no serving certificate: the roots are not loaded")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// The age is negative after the clock was set back: the leaf would not be valid yet.
	age := now.Sub(l.minted)
	if l.current != nil && signing.same(l.signer) && age >= 0 && age < leafRenewAfter {
		return l.current, nil
	}
	leaf, err := mint(signing, now, l.dnsNames)
	if err != nil {
		return nil, err
	}
	l.current, l.signer, l.minted = leaf, signing, now
	return leaf, nil
}

// mint makes a leaf under a root. Its key never leaves the process.
func mint(signing *root, now time.Time, dnsNames []string) (*tls.Certificate, error) {
	key, err := newPrivateKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(leafLifetime)
	if notAfter.After(signing.cert.NotAfter) {
		notAfter = signing.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              notAfter,
		DNSNames:              dnsNames,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, signing.cert, key.Public(), signing.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
