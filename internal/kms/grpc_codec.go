package kms

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// maxRecords is how many records, such as the pairs of a context, one request has at most on the wire, each of a batch by itself.
// What the service allows is less (twice 1024 pairs), and it says so in words of its own.
const maxRecords = 4096

// secretCodec is gRPC's own, and clears the plaintext of an answer once it is encoded. gRPC and TLS keep copies of their own for a
// while that nobody can clear: docs/design/memory.md.
//
// It decodes no request with more records than a call can have: each costs memory once it is decoded, an empty one of two bytes
// too, and nobody knows yet who calls.
type secretCodec struct{ encoding.CodecV2 }

func newSecretCodec() secretCodec { return secretCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c secretCodec) Marshal(v any) (mem.BufferSlice, error) {
	defer clearPlaintext(v)
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c secretCodec) Unmarshal(data mem.BufferSlice, v any) error {
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	_, inBatch := v.(*kmsv1.BatchDecryptRequest)
	if err := checkRecords(buf.ReadOnlyData(), inBatch); err != nil {
		return err
	}
	return c.CodecV2.Unmarshal(mem.BufferSlice{buf}, v)
}

// checkRecords counts the records of a message, and those in each of them too if nested. What is no protobuf is for the decoder to
// refuse.
func checkRecords(b []byte, nested bool) error {
	for n := 1; len(b) > 0; n++ {
		if n > maxRecords {
			return fmt.Errorf("a request has at most %d records", maxRecords)
		}
		_, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return nil
		}
		value := protowire.ConsumeFieldValue(0, kind, b[tag:])
		if value < 0 {
			return nil
		}
		if nested && kind == protowire.BytesType {
			item, _ := protowire.ConsumeBytes(b[tag:])
			if err := checkRecords(item, false); err != nil {
				return err
			}
		}
		b = b[tag+value:]
	}
	return nil
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
