//go:build cgo

package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/miekg/pkcs11"
)

const (
	keyBytes = 32
	ivBytes  = 12
	tagBytes = 16
)

var errNoKey = errors.New("the token has no such key")

// token is a PKCS#11 token that a user is logged in to. Its keys never leave it. A session does one thing at a time.
type token struct {
	mu      sync.Mutex
	ctx     *pkcs11.Ctx
	session pkcs11.SessionHandle
}

// key is an AES-256 key of the token.
type key struct {
	handle pkcs11.ObjectHandle
	id     string // label and CKA_ID: never used again
}

// loadModule loads a PKCS#11 module, which close unloads.
func loadModule(module string) (*pkcs11.Ctx, error) {
	ctx := pkcs11.New(module)
	if ctx == nil {
		return nil, fmt.Errorf("%s cannot be loaded", module)
	}
	if err := ctx.Initialize(); err != nil {
		return nil, err
	}
	return ctx, nil
}

func unload(ctx *pkcs11.Ctx) {
	_ = ctx.Finalize() // the process ends
	ctx.Destroy()
}

// initToken makes a token in the first slot that has none.
func initToken(module, label, pin string) error {
	ctx, err := loadModule(module)
	if err != nil {
		return err
	}
	defer unload(ctx)
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return err
	}
	for _, slot := range slots {
		info, err := ctx.GetTokenInfo(slot)
		if err != nil {
			return err
		}
		if info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			continue
		}
		if err := ctx.InitToken(slot, pin, label); err != nil {
			return err
		}
		session, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return err
		}
		if err := ctx.Login(session, pkcs11.CKU_SO, pin); err != nil {
			return err
		}
		return ctx.InitPIN(session, pin)
	}
	return errors.New("there is no slot for it")
}

// openToken logs in to the token of that label.
func openToken(module, label, pin string) (*token, error) {
	ctx, err := loadModule(module)
	if err != nil {
		return nil, err
	}
	session, err := login(ctx, label, pin)
	if err != nil {
		unload(ctx)
		return nil, fmt.Errorf("logging in to token %s: %w", label, err)
	}
	return &token{ctx: ctx, session: session}, nil
}

func login(ctx *pkcs11.Ctx, label, pin string) (pkcs11.SessionHandle, error) {
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		info, err := ctx.GetTokenInfo(slot)
		if err != nil {
			return 0, err
		}
		if info.Label != label {
			continue
		}
		session, err := ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err != nil {
			return 0, err
		}
		return session, ctx.Login(session, pkcs11.CKU_USER, pin)
	}
	return 0, errors.New("there is none")
}

func (t *token) close() { unload(t.ctx) }

// rotate makes a key that is newer than all others.
func (t *token) rotate() error {
	keys, err := t.keys()
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	rand.Read(id)
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err = t.ctx.GenerateKey(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, keyBytes),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, fmt.Sprintf("kek-%06d", len(keys)+1)),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
	})
	return err
}

// keys looks the keys of the token up anew: another process may have made one.
func (t *token) keys() ([]key, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.ctx.FindObjectsInit(t.session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
	})
	if err != nil {
		return nil, err
	}
	const most = 1000
	handles, _, err := t.ctx.FindObjects(t.session, most)
	if finalErr := t.ctx.FindObjectsFinal(t.session); err == nil {
		err = finalErr
	}
	if err != nil {
		return nil, err
	}
	keys := make([]key, 0, len(handles))
	for _, handle := range handles {
		attributes, err := t.ctx.GetAttributeValue(t.session, handle, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
			pkcs11.NewAttribute(pkcs11.CKA_ID, nil),
		})
		if err != nil {
			return nil, err
		}
		keys = append(keys, key{handle, string(attributes[0].Value) + "-" + hex.EncodeToString(attributes[1].Value)})
	}
	return keys, nil
}

// current returns the newest key.
func (t *token) current() (key, error) {
	keys, err := t.keys()
	if err != nil {
		return key{}, err
	}
	var newest key
	for _, k := range keys {
		if k.id > newest.id {
			newest = k
		}
	}
	if newest.id == "" {
		return key{}, errNoKey
	}
	return newest, nil
}

// find returns the key of that key_id.
func (t *token) find(id string) (key, error) {
	keys, err := t.keys()
	if err != nil {
		return key{}, err
	}
	for _, k := range keys {
		if k.id == id {
			return k, nil
		}
	}
	return key{}, errNoKey
}

// encrypt returns IV, ciphertext and tag. The key_id is authenticated with them.
func (t *token) encrypt(k key, plaintext []byte) ([]byte, error) {
	iv := make([]byte, ivBytes)
	rand.Read(iv)
	params := pkcs11.NewGCMParams(iv, []byte(k.id), tagBytes*8)
	defer params.Free()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ctx.EncryptInit(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, k.handle); err != nil {
		return nil, err
	}
	sealed, err := t.ctx.Encrypt(t.session, plaintext)
	if err != nil {
		return nil, err
	}
	return slices.Concat(iv, sealed), nil
}

func (t *token) decrypt(k key, ciphertext []byte) ([]byte, error) {
	if len(ciphertext) < ivBytes+tagBytes {
		return nil, errors.New("the ciphertext is cut off")
	}
	params := pkcs11.NewGCMParams(ciphertext[:ivBytes], []byte(k.id), tagBytes*8)
	defer params.Free()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ctx.DecryptInit(t.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, k.handle); err != nil {
		return nil, err
	}
	return t.ctx.Decrypt(t.session, ciphertext[ivBytes:])
}
