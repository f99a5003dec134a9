package kms

import (
	"fmt"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Door is the protocol that a caller speaks at the sidecar. It decides the kind of the blobs that are made, under which
// version of a key, and which kinds open. Its values are those of kmsv1.Door.
type Door int32

const (
	// DoorNative is the native API, and the zero Door. It makes nothing, and opens the data keys of DataKeyRequests alone.
	DoorNative Door = iota
	// DoorAWS is AWS KMS.
	DoorAWS
	// DoorAlibaba are the operations of Alibaba Cloud KMS that know the initial version only.
	DoorAlibaba
	// DoorAlibabaAdvance are the Advance operations of Alibaba Cloud KMS.
	DoorAlibabaAdvance
)

var doors = [...]struct {
	name  string
	makes envelope.Kind
}{
	DoorNative:         {"native", 0},
	DoorAWS:            {"AWS", envelope.KindAWS},
	DoorAlibaba:        {"Alibaba", envelope.KindAlibabaInitial},
	DoorAlibabaAdvance: {"AlibabaAdvance", envelope.KindAlibabaAdvance},
}

// String returns the name of the door, as in audit records.
func (d Door) String() string {
	if !d.valid() {
		return fmt.Sprintf("Door(%d)", int32(d))
	}
	return doors[d].name
}

func (d Door) valid() bool { return d >= 0 && int(d) < len(doors) }

// checkToOpen returns an error for a door that there is not.
func (d Door) checkToOpen() error {
	if !d.valid() {
		return invalid("door", fmt.Errorf("must be 0 to %d, not %d", len(doors)-1, int32(d)))
	}
	return nil
}

// checkToMake returns an error for a door that makes no blobs.
func (d Door) checkToMake() error {
	if !d.valid() || d == DoorNative {
		return invalid("door", fmt.Errorf("must be 1 to %d, not %d", len(doors)-1, int32(d)))
	}
	return nil
}

// kind is what the blobs are that are made at the door.
func (d Door) kind() envelope.Kind { return doors[d].makes }

// opens reports whether blobs of the kind open through the door.
func (d Door) opens(kind envelope.Kind) bool {
	switch kind {
	case envelope.KindDataKey:
		return d.valid()
	case envelope.KindAWS:
		return d == DoorAWS
	case envelope.KindAlibabaInitial:
		return d == DoorAlibaba || d == DoorAlibabaAdvance
	case envelope.KindAlibabaAdvance:
		return d == DoorAlibabaAdvance
	case envelope.KindMasterKeyVersion, envelope.KindSealingKey:
		return false
	}
	return false
}

// opened reports whether there is a door through which blobs of the kind open.
func opened(kind envelope.Kind) bool {
	return DoorNative.opens(kind) || DoorAWS.opens(kind) || DoorAlibabaAdvance.opens(kind)
}

// needsIV reports whether the IV of a blob of the kind must be stated again. It stands in the blob all the same: those who made
// this protocol keep it apart.
func needsIV(kind envelope.Kind) bool { return kind == envelope.KindAlibabaInitial }

// version returns the version of a key that encrypts at the door.
func (d Door) version(k *key) (*version, error) {
	if d != DoorAlibaba {
		return k.primaryVersion()
	}
	v := k.versions[1]
	if v == nil {
		return nil, k.damage // version 1 lacks, so the Secret is damaged
	}
	return v, nil
}
