package kms

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// secretCodec is gRPC's own, and clears the plaintext of an answer once it is encoded. gRPC and TLS keep copies of their own for a
// while that nobody can clear: docs/design/memory.md.
type secretCodec struct{ encoding.CodecV2 }

func newSecretCodec() secretCodec { return secretCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c secretCodec) Marshal(v any) (mem.BufferSlice, error) {
	defer clearPlaintext(v)
	return c.CodecV2.Marshal(v)
}

func clearPlaintext(v any) {
	switch m := v.(type) {
	case *kmsv1.GenerateDataKeyPairResponse:
		clear(m.GetPrivateKeyPlaintext())
	case *kmsv1.BatchDecryptResponse:
		for _, r := range m.GetResults() {
			clear(r.GetResponse().GetPlaintext())
		}
	case interface{ GetPlaintext() []byte }:
		clear(m.GetPlaintext())
	}
}
