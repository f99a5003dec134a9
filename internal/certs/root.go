package certs

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names of the entries of a root in the Secret: root-1.crt and root-1.key, counted from 1.
const (
	entryPrefix      = "root-"
	entryCertificate = ".crt"
	entryKey         = ".key"
)

// pemCertificate is the PEM type of a certificate, RFC 7468 section 5.
const pemCertificate = "CERTIFICATE"

// root is one certificate authority.
type root struct {
	number int
	cert   *x509.Certificate
	key    *privateKey
}

// newRoot makes a root whose life begins now.
func newRoot(number int, now time.Time) (*root, error) {
	key, err := newPrivateKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	// A subject that no other root has lets a verifier find the right one of the bundle by name.
	name := sha256.Sum256(serial.Bytes())
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Datakeys serving root " + hex.EncodeToString(name[:8])},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(rootLifetime),
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &root{number: number, cert: cert, key: key}, nil
}

// newSerial is a random positive number of at most 20 octets, RFC 5280 section 4.1.2.2.
func newSerial() (*big.Int, error) {
	octets := make([]byte, 16)
	if _, err := rand.Read(octets); err != nil {
		return nil, err
	}
	octets[0] = octets[0]&0x7f | 0x40
	return new(big.Int).SetBytes(octets), nil
}

// entries is the root as it stands in the Secret.
func (r *root) entries() (map[string][]byte, error) {
	key, err := r.key.encode()
	if err != nil {
		return nil, err
	}
	name := entryPrefix + strconv.Itoa(r.number)
	return map[string][]byte{name + entryCertificate: r.pem(), name + entryKey: key}, nil
}

func (r *root) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: r.cert.Raw})
}

func (r *root) same(other *root) bool {
	return other != nil && bytes.Equal(r.cert.Raw, other.cert.Raw)
}

// parseRoots reads the roots from the entries of the Secret, in the order of their numbers. Entries of other names are left
// to whoever wrote them. One root that does not parse fails them all: to go on without it would end the trust of the pods
// that know no other.
func parseRoots(data map[string][]byte) ([]*root, error) {
	var roots []*root
	for name, text := range data {
		digits, ok := strings.CutPrefix(name, entryPrefix)
		if !ok {
			continue
		}
		if digits, ok = strings.CutSuffix(digits, entryCertificate); !ok {
			if digits, ok = strings.CutSuffix(digits, entryKey); ok && data[entryPrefix+digits+entryCertificate] == nil {
				return nil, fmt.Errorf("entry %s has no certificate beside it: %s%s%s is missing", name, entryPrefix, digits, entryCertificate)
			}
			continue
		}
		number, err := strconv.Atoi(digits)
		if err != nil || number < 1 || strconv.Itoa(number) != digits {
			return nil, fmt.Errorf("entry %s: the number of a root must be a positive decimal number", name)
		}
		r, err := parseRoot(number, text, data[entryPrefix+digits+entryKey])
		if err != nil {
			return nil, err
		}
		roots = append(roots, r)
	}
	slices.SortFunc(roots, func(a, b *root) int { return a.number - b.number })
	return roots, nil
}

func parseRoot(number int, certText, keyText []byte) (*root, error) {
	name := entryPrefix + strconv.Itoa(number)
	cert, err := parseCertificate(certText)
	if err != nil {
		return nil, fmt.Errorf("entry %s%s: %w", name, entryCertificate, err)
	}
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, fmt.Errorf("entry %s%s: must be a certificate authority", name, entryCertificate)
	}
	key, err := decodePrivateKey(keyText)
	if err != nil {
		return nil, fmt.Errorf("entry %s%s: %w", name, entryKey, err)
	}
	if !key.key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("entry %s%s: must be the key of %s%s", name, entryKey, name, entryCertificate)
	}
	return &root{number: number, cert: cert, key: key}, nil
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemCertificate || len(rest) != 0 {
		return nil, errors.New("must be exactly one PEM block of type " + pemCertificate)
	}
	return x509.ParseCertificate(block.Bytes)
}
