package aws

import (
	"context"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

func encrypt(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.Encrypt(ctx, &kmsv1.EncryptRequest{
		KeyId: q.keyID, Plaintext: q.plaintext, EncryptionContext: q.encryptionContext, Door: door, DryRun: q.dryRun,
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
	x.text("EncryptionAlgorithm", symmetricDefault)
	x.end()
	return nil
}

func decrypt(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.Decrypt(ctx, &kmsv1.DecryptRequest{
		CiphertextBlob: q.ciphertextBlob, EncryptionContext: q.encryptionContext, KeyId: q.keyID, Door: door, DryRun: q.dryRun,
	})
	if err != nil {
		return x.refused(err)
	}
	defer clear(a.GetPlaintext())
	if e := x.made(len(a.GetKeyId()), len(a.GetPlaintext())); e != nil {
		return e
	}
	x.begin(0)
	x.text("KeyId", a.GetKeyId())
	x.text("EncryptionAlgorithm", symmetricDefault)
	x.materialID("KeyMaterialId", a.GetMaterialId())
	x.plaintext("Plaintext", a.GetPlaintext())
	return nil
}

func reEncrypt(ctx context.Context, d *Door, x *exchange) *exception {
	q := &x.request
	a, err := d.kms.ReEncrypt(ctx, &kmsv1.ReEncryptRequest{
		CiphertextBlob: q.ciphertextBlob, SourceEncryptionContext: q.sourceEncryptionContext, SourceKeyId: q.sourceKeyID,
		DestinationKeyId: q.destinationKeyID, DestinationEncryptionContext: q.destinationEncryptionContext, Door: door, DryRun: q.dryRun,
	})
	if err != nil {
		return x.refused(err)
	}
	if e := x.made(len(a.GetKeyId()), len(a.GetSourceKeyId()), len(a.GetCiphertextBlob())); e != nil {
		return e
	}
	x.begin(len(a.GetCiphertextBlob()))
	x.blob("CiphertextBlob", a.GetCiphertextBlob())
	x.text("SourceKeyId", a.GetSourceKeyId())
	x.text("KeyId", a.GetKeyId())
	x.text("SourceEncryptionAlgorithm", symmetricDefault)
	x.text("DestinationEncryptionAlgorithm", symmetricDefault)
	x.materialID("SourceKeyMaterialId", a.GetSourceMaterialId())
	x.materialID("DestinationKeyMaterialId", a.GetMaterialId())
	x.end()
	return nil
}
