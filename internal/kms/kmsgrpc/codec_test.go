package kmsgrpc

import (
	"bytes"
	"strconv"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// A request whose records are small and many is refused before it takes memory.
func TestARequestOfManyRecordsIsNotDecoded(t *testing.T) {
	pairs := func(n int) map[string]string {
		context := map[string]string{}
		for i := range n {
			context[strconv.Itoa(i)] = ""
		}
		return context
	}
	largest := &kmsv1.BatchDecryptRequest{} // half of what is allowed, as sidecars send it
	for proto.Size(largest) < kmsv1.MaxRequestSize/2 {
		largest.Requests = append(largest.Requests, &kmsv1.DecryptRequest{EncryptionContext: pairs(1024), KeyId: "k", DryRun: true})
	}
	encoded := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	empties := bytes.Repeat([]byte{0x0a, 0x00}, kmsv1.MaxRequestSize/2)
	for name, c := range map[string]struct {
		data    []byte
		into    proto.Message
		refused bool
	}{
		"a batch of very many pairs":      {encoded(largest), new(kmsv1.BatchDecryptRequest), false},
		"a batch too large, in few words": {encoded(&kmsv1.BatchDecryptRequest{Requests: make([]*kmsv1.DecryptRequest, kmsv1.MaxBatch+1)}), new(kmsv1.BatchDecryptRequest), false},
		"a batch of empty requests":       {empties, new(kmsv1.BatchDecryptRequest), true},
		"a batch of one with many pairs": {
			protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), bytes.Repeat([]byte{0x12, 0x00}, 100_000)), new(kmsv1.BatchDecryptRequest), true,
		},
		"the largest contexts": {
			encoded(&kmsv1.ReEncryptRequest{SourceEncryptionContext: pairs(1024), DestinationEncryptionContext: pairs(1024)}), new(kmsv1.ReEncryptRequest), false,
		},
		"a context too large, in few words": {encoded(&kmsv1.DecryptRequest{EncryptionContext: pairs(1025)}), new(kmsv1.DecryptRequest), false},
		"a context of empty pairs":          {bytes.Repeat([]byte{0x12, 0x00}, 100_000), new(kmsv1.DecryptRequest), true},
		"fields that are not known":         {bytes.Repeat([]byte{0x78, 0x01}, 100_000), new(kmsv1.ListKeysRequest), true},
		"a group, and then empty requests": {
			append([]byte{0x7b, 0x78, 0x01, 0x7c}, empties...), new(kmsv1.BatchDecryptRequest), true,
		},
		"one request, of a group and then many pairs": {
			protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), append([]byte{0x7b, 0x7c}, bytes.Repeat([]byte{0x12, 0x00}, 100_000)...)),
			new(kmsv1.BatchDecryptRequest), true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			half := len(c.data) / 2
			err := newSecretCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(c.data[:half]), mem.SliceBuffer(c.data[half:])}, c.into)
			if (err != nil) != c.refused {
				t.Fatalf("got %v, refused %v", err, c.refused)
			}
			if n := proto.Size(c.into); c.refused && n > 0 || !c.refused && n == 0 {
				t.Errorf("%d bytes were decoded", n)
			}
		})
	}
}
