package main

import (
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	testTime   = time.Date(2030, 3, 1, 12, 0, 0, 0, time.UTC)
	testServer = subject{
		file:      "server",
		name:      "server",
		dnsNames:  []string{"localhost", "kubernetes.default.svc"},
		addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("198.18.0.2")},
	}
	testClient = subject{file: "client", name: "system:node:node", organization: "system:nodes"}
)

func at(t time.Time) func() time.Time { return func() time.Time { return t } }

func mustAuthority(t *testing.T, dir string, now time.Time) *authority {
	t.Helper()
	a, err := openAuthority(dir, at(now))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustLeaf(t *testing.T, a *authority, s subject) credential {
	t.Helper()
	c, err := a.leaf(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLeafIsWhatItsSubjectNeeds(t *testing.T) {
	a := mustAuthority(t, t.TempDir(), testTime)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.pem) {
		t.Fatal("the authority's certificate is not PEM")
	}
	tests := map[string]struct {
		subject subject
		options x509.VerifyOptions
		wantErr bool
	}{
		"a server by its DNS name": {
			subject: testServer,
			options: x509.VerifyOptions{DNSName: "kubernetes.default.svc", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		},
		"a server by its address": {
			subject: testServer,
			options: x509.VerifyOptions{DNSName: "198.18.0.2", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		},
		"not a server by another name": {
			subject: testServer,
			options: x509.VerifyOptions{DNSName: "example", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
			wantErr: true,
		},
		"a client": {
			subject: testClient,
			options: x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		},
		"not a server when it is a client": {
			subject: testClient,
			options: x509.VerifyOptions{KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
			wantErr: true,
		},
		"not a client after its end": {
			subject: testClient,
			options: x509.VerifyOptions{
				KeyUsages:   []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
				CurrentTime: testTime.Add(leafLife + time.Second),
			},
			wantErr: true,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cert, _, err := parseCredential(mustLeaf(t, a, tt.subject))
			if err != nil {
				t.Fatal(err)
			}
			tt.options.Roots = roots
			if tt.options.CurrentTime.IsZero() {
				tt.options.CurrentTime = testTime
			}
			if _, err := cert.Verify(tt.options); (err != nil) != tt.wantErr {
				t.Errorf("Verify: %v, want an error: %t", err, tt.wantErr)
			}
			if diff := cmp.Diff(tt.subject.name, cert.Subject.CommonName); diff != "" {
				t.Errorf("common name (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCredentialsAreKeptWhileTheyServe(t *testing.T) {
	moved := testServer
	moved.addresses = []netip.Addr{netip.MustParseAddr("198.18.0.6")}
	tests := map[string]struct {
		between       func(t *testing.T, dir string)
		later         time.Duration
		subject       subject
		wantAuthority bool // the same as before
		wantLeaf      bool
	}{
		"soon afterwards":              {subject: testServer, later: time.Hour, wantAuthority: true, wantLeaf: true},
		"shortly before the leaf ends": {subject: testServer, later: leafLife - renewBefore + time.Hour, wantAuthority: true},
		"shortly before the authority ends, which no leaf must outlive": {
			subject: testServer, later: authorityLife - leafLife + time.Hour,
		},
		"with the clock set back, to before they were valid": {subject: testServer, later: -clockSkew - time.Hour},
		"at another address": {subject: moved, later: time.Hour, wantAuthority: true},
		"with the leaf's key lost": {
			subject: testServer, wantAuthority: true,
			between: func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "server.key")) },
		},
		"with the authority's key lost": {
			subject: testServer,
			between: func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "ca.key")) },
		},
		"with the authority's key replaced but not its certificate": {
			subject: testServer,
			between: func(t *testing.T, dir string) {
				other := t.TempDir()
				mustAuthority(t, other, testTime)
				if err := os.Rename(filepath.Join(other, "ca.key"), filepath.Join(dir, "ca.key")); err != nil {
					t.Fatal(err)
				}
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			before := mustAuthority(t, dir, testTime)
			leafBefore := mustLeaf(t, before, testServer)
			if tt.between != nil {
				tt.between(t, dir)
			}
			after := mustAuthority(t, dir, testTime.Add(tt.later))
			leafAfter := mustLeaf(t, after, tt.subject)
			if got := string(before.pem) == string(after.pem); got != tt.wantAuthority {
				t.Errorf("same authority: %t, want %t", got, tt.wantAuthority)
			}
			if got := string(leafBefore.cert) == string(leafAfter.cert); got != tt.wantLeaf {
				t.Errorf("same leaf: %t, want %t", got, tt.wantLeaf)
			}
			if !after.current(leafAfter, tt.subject) {
				t.Error("the leaf does not fit its subject and authority")
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestSigningKeyStays(t *testing.T) {
	a := mustAuthority(t, t.TempDir(), testTime)
	read := func() [2]string {
		t.Helper()
		private, public, err := a.signingKey()
		if err != nil {
			t.Fatal(err)
		}
		var content [2]string
		for i, path := range []string{private, public} {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			content[i] = string(b)
		}
		return content
	}
	first := read()
	remove(t, filepath.Join(a.dir, "sa.pub")) // as after an up that was interrupted between the two
	if second := read(); first != second {
		t.Error("the key that signs ServiceAccount tokens changed")
	}
}
