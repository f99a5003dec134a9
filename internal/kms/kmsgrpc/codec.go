package kmsgrpc

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// secretCodec is gRPC's own, and clears the plaintext of an answer once it is encoded. gRPC and TLS keep copies of their own for a
// while that nobody can clear: docs/design/memory.md.
//
// It decodes no request with more records than one can have: each costs memory once it is decoded, an empty one of two bytes too.
type secretCodec struct{ encoding.CodecV2 }

func newSecretCodec() secretCodec { return secretCodec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements encoding.CodecV2.
func (c secretCodec) Marshal(v any) (mem.BufferSlice, error) {
	defer clearPlaintext(v)
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	// gRPC's buffer may be 30 times as large, and is held for as long as a caller does not read the answer.
	b, err := proto.Marshal(m)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

// Unmarshal implements encoding.CodecV2.
func (c secretCodec) Unmarshal(data mem.BufferSlice, v any) error {
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	_, inBatch := v.(*kmsv1.BatchDecryptRequest)
	if n := countRecords(buf.ReadOnlyData(), inBatch); n > kmsv1.MaxRequestRecords {
		return fmt.Errorf("a request has at most %d records, not %d", kmsv1.MaxRequestRecords, n)
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{buf}, v)
}

// countRecords counts the records of a message, such as the pairs of a context, and those in each of them too if nested. What is no
// protobuf is for the decoder to refuse.
func countRecords(b []byte, nested bool) (n int) {
	for ; len(b) > 0; n++ {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return n
		}
		value := protowire.ConsumeFieldValue(number, kind, b[tag:]) // a group ends with its own number
		if value < 0 {
			return n
		}
		if nested && kind == protowire.BytesType {
			item, _ := protowire.ConsumeBytes(b[tag:])
			n += countRecords(item, false)
		}
		b = b[tag+value:]
	}
	return n
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
