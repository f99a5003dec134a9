package client_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/datakeys/datakeys/client"
)

func Example() {
	ctx := context.Background()
	keys, err := client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
	if err != nil {
		log.Fatal(err)
	}
	orders, err := keys.AEAD(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	defer orders.Close()

	row := []byte("customers, row 42, column card") // not secret, and whoever decrypts states it again
	ciphertext, err := orders.Seal(ctx, []byte("4111 1111 1111 1111"), row)
	if err != nil {
		log.Fatal(err)
	}
	card, err := orders.Open(ctx, ciphertext, row)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", card)
	// Output: 4111 1111 1111 1111
}

func ExampleClient_DataKey() {
	ctx := context.Background()
	keys, err := client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
	if err != nil {
		log.Fatal(err)
	}
	key, err := keys.DataKey(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	defer key.Destroy()
	fmt.Println(key.Name, key.Generation, key.Plaintext.Len(), key.Plaintext)
	// Output: orders 1 32 [redacted]
}

func ExampleSecret_Use() {
	// signer asks the sidecar for a key pair.
	signer := func(ctx context.Context, keys *client.Client, name string) (private any, err error) {
		key, err := keys.DataKey(ctx, name)
		if err != nil {
			return nil, err
		}
		defer key.Destroy()
		err = key.Plaintext.Use(func(der []byte) error {
			private, err = x509.ParsePKCS8PrivateKey(der)
			return err
		})
		return private, err
	}
	keys, err := client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
	if err != nil {
		log.Fatal(err)
	}
	_, err = signer(context.Background(), keys, "signing")
	fmt.Println(err)
	// Output: datakeys: UnknownDataKey: this pod has no data key "signing": it was created without it; name it in the annotation datakeys.io/data-keys and create the pod again
}

func ExampleClient_Encrypt() {
	ctx := context.Background()
	keys, err := client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
	if err != nil {
		log.Fatal(err)
	}
	row := []byte("customers, row 42, column card")
	ciphertext, err := keys.Encrypt(ctx, "orders", []byte("4111 1111 1111 1111"), row)
	if err != nil {
		log.Fatal(err)
	}
	card, err := keys.Decrypt(ctx, "orders", ciphertext, row)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", card)
	// Output: 4111 1111 1111 1111
}

func ExampleClient_Watch() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	keys, err := client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
	if err != nil {
		log.Fatal(err)
	}
	for event, err := range keys.Watch(ctx, "orders") {
		if err != nil {
			log.Fatal(err) // the context has ended, or the pod has no such data key
		}
		fmt.Println(event.Kind, event.Name, event.Generation, event.Reason)
		break // an application goes on
	}
	// Output: generation orders 1
}

func ExampleError() {
	keys, err := client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
	if err != nil {
		log.Fatal(err)
	}
	_, err = keys.DataKey(context.Background(), "payments")
	if e, ok := errors.AsType[*client.Error](err); ok {
		fmt.Println(e.Status, e.Reason, e.Temporary(), e.RetryAfter)
	}
	// Output: 404 UnknownDataKey false 0s
}
