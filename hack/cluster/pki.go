package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
	renewBefore   = 30 * 24 * time.Hour // of the end of a certificate, at the next up
	clockSkew     = time.Hour           // a certificate is valid this long before it was made
)

// An authority is the cluster's certificate authority, kept in a folder as ca.crt and ca.key. It signs for clients and
// servers alike.
type authority struct {
	dir  string
	now  func() time.Time
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// A credential is a certificate and its key, both PEM.
type credential struct{ cert, key []byte }

// A subject is whom a leaf certificate names. One with addresses or names is a server.
type subject struct {
	file         string // NAME.crt and NAME.key
	name         string // the user, for clients
	organization string // the group, for clients
	dnsNames     []string
	addresses    []netip.Addr
}

// openAuthority reads the authority of a folder, or makes one if there is none that can be used.
func openAuthority(dir string, now func() time.Time) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &authority{dir: dir, now: now}
	stored, err := readCredential(dir, "ca")
	if err == nil {
		a.cert, a.key, err = parseCredential(stored)
	}
	if err == nil && a.cert.IsCA && now().After(a.cert.NotBefore) && now().Before(a.cert.NotAfter.Add(-leafLife)) {
		a.pem = stored.cert
		return a, nil
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "datakeys local cluster"},
		NotBefore:             now().Add(-clockSkew),
		NotAfter:              now().Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	made, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	if err := writeCredential(dir, "ca", made); err != nil {
		return nil, err
	}
	a.cert, a.key, err = parseCredential(made)
	a.pem = made.cert
	return a, err
}

// leaf returns the certificate of a subject: the stored one while it says what it should and is not about to end, else
// a new one.
func (a *authority) leaf(s subject) (credential, error) {
	if stored, err := readCredential(a.dir, s.file); err == nil && a.current(stored, s) {
		return stored, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return credential{}, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: s.name},
		NotBefore:   a.now().Add(-clockSkew),
		NotAfter:    a.now().Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{s.usage()},
		DNSNames:    s.dnsNames,
	}
	if s.organization != "" {
		template.Subject.Organization = []string{s.organization}
	}
	for _, address := range s.addresses {
		template.IPAddresses = append(template.IPAddresses, address.AsSlice())
	}
	made, err := sign(template, a.cert, key, a.key)
	if err != nil {
		return credential{}, err
	}
	return made, writeCredential(a.dir, s.file, made)
}

func (s subject) usage() x509.ExtKeyUsage {
	if len(s.dnsNames)+len(s.addresses) > 0 {
		return x509.ExtKeyUsageServerAuth
	}
	return x509.ExtKeyUsageClientAuth
}

// current says whether a stored credential can go on to serve a subject.
func (a *authority) current(c credential, s subject) bool {
	cert, _, err := parseCredential(c)
	if err != nil || cert.CheckSignatureFrom(a.cert) != nil {
		return false
	}
	if a.now().Before(cert.NotBefore) || a.now().After(cert.NotAfter.Add(-renewBefore)) {
		return false
	}
	if cert.Subject.CommonName != s.name || !slices.Contains(cert.ExtKeyUsage, s.usage()) {
		return false
	}
	if s.organization != "" && !slices.Equal(cert.Subject.Organization, []string{s.organization}) {
		return false
	}
	var addresses []netip.Addr
	for _, ip := range cert.IPAddresses {
		address, _ := netip.AddrFromSlice(ip)
		addresses = append(addresses, address.Unmap())
	}
	return slices.Equal(cert.DNSNames, s.dnsNames) && slices.Equal(addresses, s.addresses)
}

// signingKey returns the path of the key that signs ServiceAccount tokens and of its public half, made if need be. It
// outlives everything else of the folder: with another key the tokens of running pods would be worth nothing.
func (a *authority) signingKey() (private, public string, err error) {
	private, public = filepath.Join(a.dir, "sa.key"), filepath.Join(a.dir, "sa.pub")
	var signer crypto.Signer
	if stored, err := os.ReadFile(private); err == nil {
		signer, _ = parseKey(stored)
	}
	if signer == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return "", "", err
		}
		encoded, err := encodeKey(key)
		if err != nil {
			return "", "", err
		}
		if err := writeFile(private, encoded, 0o600); err != nil {
			return "", "", err
		}
		signer = key
	}
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return "", "", err
	}
	return private, public, writeFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
}

func sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey, parentKey crypto.Signer) (credential, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return credential{}, err
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return credential{}, err
	}
	return credential{cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: encoded}, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(encoded []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(encoded)
	if block == nil {
		return nil, errors.New("the key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

// parseCredential also checks that certificate and key belong together: an interrupted up may have written one of them.
func parseCredential(c credential) (*x509.Certificate, crypto.Signer, error) {
	block, _ := pem.Decode(c.cert)
	if block == nil {
		return nil, nil, errors.New("the certificate is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(c.key)
	if err != nil {
		return nil, nil, err
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, nil, errors.New("the certificate is of another key")
	}
	return cert, key, nil
}

func readCredential(dir, name string) (credential, error) {
	cert, err := os.ReadFile(filepath.Join(dir, name+".crt"))
	if err != nil {
		return credential{}, err
	}
	key, err := os.ReadFile(filepath.Join(dir, name+".key"))
	return credential{cert: cert, key: key}, err
}

func writeCredential(dir, name string, c credential) error {
	if err := writeFile(filepath.Join(dir, name+".key"), c.key, 0o600); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, name+".crt"), c.cert, 0o600)
}

// writeFile replaces a file as a whole: whoever reads it, and whoever is interrupted, meets the old or the new content.
func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}
