package client_test

import (
	"crypto/aes"
	"crypto/cipher"
	"testing"

	"github.com/datakeys/datakeys/client"
	"github.com/datakeys/datakeys/sidecar/podtest"
)

// The ways to encrypt 1 KiB, beside bare AES-GCM with one key for all messages, and beside getting the data key each time.

func BenchmarkEncrypt(b *testing.B) {
	c, a := benchClient(b)
	data, row := make([]byte, 1<<10), []byte("row 42")
	gcm := bareGCM(b)
	out := make([]byte, 0, len(data)+gcm.Overhead())
	each(b, "bare", func() error { gcm.Seal(out, nil, data, row); return nil })
	each(b, "AEAD", func() error { _, err := a.Seal(b.Context(), data, row); return err })
	each(b, "sidecar", func() error { _, err := c.Encrypt(b.Context(), "orders", data, row); return err })
}

func BenchmarkDecrypt(b *testing.B) {
	c, a := benchClient(b)
	data, row := make([]byte, 1<<10), []byte("row 42")
	gcm := bareGCM(b)
	bare := gcm.Seal(nil, nil, data, row)
	sealed, err := a.Seal(b.Context(), data, row)
	if err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 0, len(data))
	each(b, "bare", func() error { _, err := gcm.Open(out, nil, bare, row); return err })
	each(b, "AEAD", func() error { _, err := a.Open(b.Context(), sealed, row); return err })
	each(b, "sidecar", func() error { _, err := c.Decrypt(b.Context(), "orders", sealed, row); return err })
}

func BenchmarkDataKey(b *testing.B) {
	c, _ := benchClient(b)
	each(b, "get", func() error {
		k, err := c.DataKey(b.Context(), "orders")
		if err == nil {
			k.Destroy()
		}
		return err
	})
}

func BenchmarkSealInParallel(b *testing.B) {
	_, a := benchClient(b)
	data, row := make([]byte, 1<<10), []byte("row 42")
	b.SetBytes(int64(len(data)))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := a.Seal(b.Context(), data, row); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func benchClient(b *testing.B) (*client.Client, *client.AEAD) {
	b.Helper()
	pod := podtest.New(b, "orders")
	pod.Put(b, "orders", dataKey(1))
	pod.Start(b)
	c := newClient(b, pod)
	a, err := c.AEAD(b.Context(), "orders")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(a.Close)
	return c, a
}

func bareGCM(b *testing.B) cipher.AEAD {
	b.Helper()
	block, err := aes.NewCipher(dataKey(1))
	if err != nil {
		b.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		b.Fatal(err)
	}
	return gcm
}

func each(b *testing.B, name string, f func() error) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
