package aws

import (
	"context"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

func generateDataKey(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.GenerateDataKey(ctx, &kmsv1.GenerateDataKeyRequest{
		KeyId: q.keyID, NumberOfBytes: q.numberOfBytes, KeySpec: q.keySpec, EncryptionContext: q.encryptionContext, Door: door,
		DryRun: q.dryRun,
	})
	if err != nil {
		return x.refused(err)
	}
	defer clear(a.GetPlaintext())
	if e := x.made(len(a.GetKeyId()), len(a.GetCiphertextBlob()), len(a.GetPlaintext())); e != nil {
		return e
	}
	x.begin(len(a.GetCiphertextBlob()))
	x.blob("CiphertextBlob", a.GetCiphertextBlob())
	x.text("KeyId", a.GetKeyId())
	x.materialID("KeyMaterialId", a.GetMaterialId())
	x.plaintext("Plaintext", a.GetPlaintext())
	return nil
}

func generateDataKeyWithoutPlaintext(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.GenerateDataKeyWithoutPlaintext(ctx, &kmsv1.GenerateDataKeyWithoutPlaintextRequest{
		KeyId: q.keyID, NumberOfBytes: q.numberOfBytes, KeySpec: q.keySpec, EncryptionContext: q.encryptionContext, Door: door,
		DryRun: q.dryRun,
	})
	if err != nil {
		return x.refused(err)
	}
	if e := x.made(len(a.GetKeyId()), len(a.GetCiphertextBlob())); e != nil {
		return e
	}
	x.begin(len(a.GetCiphertextBlob()))
	x.blob("CiphertextBlob", a.GetCiphertextBlob())
	x.text("KeyId", a.GetKeyId())
	x.materialID("KeyMaterialId", a.GetMaterialId())
	x.end()
	return nil
}

func generateDataKeyPair(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.GenerateDataKeyPair(ctx, &kmsv1.GenerateDataKeyPairRequest{
		KeyId: q.keyID, KeyPairSpec: q.keyPairSpec, EncryptionContext: q.encryptionContext, Door: door, DryRun: q.dryRun,
	})
	if err != nil {
		return x.refused(err)
	}
	plaintext := a.GetPrivateKeyPlaintext()
	defer clear(plaintext)
	if e := x.made(len(a.GetKeyId()), len(a.GetPrivateKeyCiphertextBlob()), len(a.GetPublicKey()), len(plaintext)); e != nil {
		return e
	}
	x.pair(a.GetKeyId(), a.GetKeyPairSpec(), a.GetMaterialId(), a.GetPublicKey(), a.GetPrivateKeyCiphertextBlob())
	x.plaintext("PrivateKeyPlaintext", plaintext)
	return nil
}

func generateDataKeyPairWithoutPlaintext(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.GenerateDataKeyPairWithoutPlaintext(ctx, &kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{
		KeyId: q.keyID, KeyPairSpec: q.keyPairSpec, EncryptionContext: q.encryptionContext, Door: door, DryRun: q.dryRun,
	})
	if err != nil {
		return x.refused(err)
	}
	if e := x.made(len(a.GetKeyId()), len(a.GetPrivateKeyCiphertextBlob()), len(a.GetPublicKey())); e != nil {
		return e
	}
	x.pair(a.GetKeyId(), a.GetKeyPairSpec(), a.GetMaterialId(), a.GetPublicKey(), a.GetPrivateKeyCiphertextBlob())
	x.end()
	return nil
}

// pair begins the answer with what is not secret of a key pair.
func (x *exchange) pair(key, spec string, material, public, blob []byte) {
	x.begin(len(blob) + len(public))
	x.blob("PrivateKeyCiphertextBlob", blob)
	x.blob("PublicKey", public)
	x.text("KeyId", key)
	x.text("KeyPairSpec", spec)
	x.materialID("KeyMaterialId", material)
}

func generateRandom(ctx context.Context, d *Door, x *exchange) *exception {
	a, err := d.kms.GenerateRandom(ctx, &kmsv1.GenerateRandomRequest{NumberOfBytes: x.request.numberOfBytes})
	if err != nil {
		return x.refused(err)
	}
	defer clear(a.GetPlaintext())
	if e := x.made(len(a.GetPlaintext())); e != nil {
		return e
	}
	x.begin(0)
	x.plaintext("Plaintext", a.GetPlaintext())
	return nil
}
