package client_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/datakeys/datakeys/sidecar/podtest"
)

// TestMain runs a sidecar for the examples, which find it as an application does.
func TestMain(m *testing.M) {
	os.Exit(func() int {
		t := &examplesTB{}
		defer t.end()
		pod := podtest.New(t, "orders")
		pod.Put(t, "orders", dataKey(1))
		pod.Start(t)
		if err := os.Setenv("DATAKEYS_SOCKET", pod.Socket); err != nil {
			t.Fatal(err)
		}
		return m.Run()
	}())
}

// examplesTB is what a sidecar for examples needs of a test.
type examplesTB struct {
	testing.TB
	cleanups []func()
}

func (*examplesTB) Helper()                  {}
func (*examplesTB) Context() context.Context { return context.Background() }
func (*examplesTB) Fatal(args ...any)        { panic(fmt.Sprint(args...)) }
func (*examplesTB) Error(args ...any)        { panic(fmt.Sprint(args...)) }
func (t *examplesTB) Cleanup(f func())       { t.cleanups = append(t.cleanups, f) }

func (t *examplesTB) TempDir() string {
	dir, err := os.MkdirTemp("", "dk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (t *examplesTB) end() {
	for _, f := range t.cleanups {
		defer f()
	}
}

// dataKey is a data key whose bytes are found again wherever they are printed, and none of them ASCII.
func dataKey(generation byte) []byte {
	b := make([]byte, 32)
	for i := range b {
		b[i] = 0x80 | byte(i*37)&0x70 | generation
	}
	return b
}

// shortDir returns a directory whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
