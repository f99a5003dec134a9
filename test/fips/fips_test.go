//go:build fips140v1.0

// Package fips_test says what the tests of `make test-fips` run on. Go sets its build constraint in a FIPS build alone.
package fips_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"testing"
)

func TestModuleIsTheCertifiedOneAndEnforced(t *testing.T) {
	if got, want := fips140.Version(), "v1.0.0"; got != want {
		t.Errorf("version of the FIPS 140-3 module: got %q, want %q", got, want)
	}
	if !fips140.Enabled() {
		t.Error("the FIPS 140-3 module is off")
	}
	if !fips140.Enforced() {
		t.Error("what is not approved is let pass: run with GODEBUG=fips140=only")
	}
}

// With this the blob format was chosen: nobody encrypts under an IV of their own.
func TestChosenIVIsRefused(t *testing.T) {
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cipher.NewGCM(block); err == nil {
		t.Error("cipher.NewGCM: got an AEAD that takes any IV, want an error")
	}
}
