package aws

import "slices"

// member is a member of a request that is known.
type member uint8

const (
	memberKeyID member = iota
	memberDestinationKeyID
	memberSourceKeyID
	memberCiphertextBlob
	memberPlaintext
	memberNumberOfBytes
	memberKeySpec
	memberKeyPairSpec
	memberEncryptionAlgorithm
	memberSourceEncryptionAlgorithm
	memberDestinationEncryptionAlgorithm
	memberEncryptionContext
	memberSourceEncryptionContext
	memberDestinationEncryptionContext
	memberGrantTokens
	memberDryRun
	memberDryRunModifiers
	memberCustomKeyStoreID
	memberLimit
	memberMarker
	memberRecipient
)

// request is what a client asks: the members as they came.
type request struct {
	has                                                                      uint32 // a bit each member; null is none
	keyID, destinationKeyID, sourceKeyID                                     string
	ciphertextBlob, plaintext                                                []byte
	numberOfBytes, limit                                                     int32
	keySpec, keyPairSpec                                                     string
	encryptionAlgorithm                                                      string
	sourceEncryptionAlgorithm                                                string
	destinationEncryptionAlgorithm                                           string
	encryptionContext, sourceEncryptionContext, destinationEncryptionContext map[string]string
	grantTokens, dryRunModifiers                                             []string
	dryRun                                                                   bool
	customKeyStoreID, marker                                                 string
	recipient                                                                structure
}

// structure is a member that is refused, whatever is in it.
type structure struct{}

func (r *request) given(m member) bool { return r.has&(1<<m) != 0 }

// parse reads the body of a request for an operation. Members that are not known are passed over, since clients are newer than we
// are, but for Recipient: whoever sends it trusts that no plaintext comes back.
func (r *request) parse(p *parser, o *operation) *exception {
	return p.whole(func(name []byte) *exception {
		for _, m := range o.members {
			if string(name) == members[m].name {
				return r.read(p, m)
			}
		}
		if string(name) == members[memberRecipient].name {
			return r.read(p, memberRecipient)
		}
		return p.skip()
	})
}

// read reads the value of a member.
func (r *request) read(p *parser, m member) (e *exception) {
	if p.literal("null") {
		return nil
	}
	r.has |= 1 << m
	switch v := members[m].at(r).(type) {
	case *string:
		var text []byte
		text, e = p.text()
		*v = string(text)
	case *[]byte:
		*v, e = p.blob()
	case *int32:
		*v, e = p.integer()
	case *bool:
		*v, e = p.boolean()
	case *map[string]string:
		*v, e = p.texts()
	case *[]string:
		e = p.array(func() *exception {
			text, e := p.text()
			*v = append(*v, string(text))
			return e
		})
	case *structure:
		e = p.object(func([]byte) *exception { return p.skip() })
	}
	return e
}

// texts reads an object of strings. Numbers are not taken for strings: 1 and 1.0 would be two contexts or one, by the reader.
func (p *parser) texts() (map[string]string, *exception) {
	m := map[string]string{}
	return m, p.object(func(name []byte) *exception {
		text, e := p.text()
		m[string(name)] = string(text)
		return e
	})
}

// wipe clears what may be secret.
func (r *request) wipe() { clear(r.plaintext) }

// algorithms are those of the model. Keys of Datakeys have the first.
var algorithms = []string{symmetricDefault, "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"}

const symmetricDefault = "SYMMETRIC_DEFAULT"

// members are the constraints of each member in the service model: of a number its range, of strings and bytes their length, of a list
// how long it is. Of a context the model says nothing, and the key service takes maxContextSize bytes in maxContextPairs.
var members = [...]struct {
	name, field string // in a request, and in messages
	min, max    int
	enum        []string
	at          func(*request) any // where it is
}{
	memberKeyID: {
		name: "KeyId", field: "keyId", min: 1, max: maxKeyID,
		at: func(r *request) any { return &r.keyID },
	},
	memberDestinationKeyID: {
		name: "DestinationKeyId", field: "destinationKeyId", min: 1, max: maxKeyID,
		at: func(r *request) any { return &r.destinationKeyID },
	},
	memberSourceKeyID: {
		name: "SourceKeyId", field: "sourceKeyId", min: 1, max: maxKeyID,
		at: func(r *request) any { return &r.sourceKeyID },
	},
	memberCiphertextBlob: {
		name: "CiphertextBlob", field: "ciphertextBlob", min: 1, max: maxBlob,
		at: func(r *request) any { return &r.ciphertextBlob },
	},
	memberPlaintext: {
		name: "Plaintext", field: "plaintext", min: 1, max: 4096,
		at: func(r *request) any { return &r.plaintext },
	},
	memberNumberOfBytes: {
		name: "NumberOfBytes", field: "numberOfBytes", min: 1, max: 1024,
		at: func(r *request) any { return &r.numberOfBytes },
	},
	memberKeySpec: {
		name: "KeySpec", field: "keySpec", enum: []string{"AES_256", "AES_128"},
		at: func(r *request) any { return &r.keySpec },
	},
	memberKeyPairSpec: {
		name: "KeyPairSpec", field: "keyPairSpec", enum: keyPairSpecs,
		at: func(r *request) any { return &r.keyPairSpec },
	},
	memberEncryptionAlgorithm: {
		name: "EncryptionAlgorithm", field: "encryptionAlgorithm", enum: algorithms,
		at: func(r *request) any { return &r.encryptionAlgorithm },
	},
	memberSourceEncryptionAlgorithm: {
		name: "SourceEncryptionAlgorithm", field: "sourceEncryptionAlgorithm", enum: algorithms,
		at: func(r *request) any { return &r.sourceEncryptionAlgorithm },
	},
	memberDestinationEncryptionAlgorithm: {
		name: "DestinationEncryptionAlgorithm", field: "destinationEncryptionAlgorithm", enum: algorithms,
		at: func(r *request) any { return &r.destinationEncryptionAlgorithm },
	},
	memberEncryptionContext: {
		name: "EncryptionContext", field: "encryptionContext",
		at: func(r *request) any { return &r.encryptionContext },
	},
	memberSourceEncryptionContext: {
		name: "SourceEncryptionContext", field: "sourceEncryptionContext",
		at: func(r *request) any { return &r.sourceEncryptionContext },
	},
	memberDestinationEncryptionContext: {
		name: "DestinationEncryptionContext", field: "destinationEncryptionContext",
		at: func(r *request) any { return &r.destinationEncryptionContext },
	},
	memberGrantTokens: {
		name: "GrantTokens", field: "grantTokens", max: maxGrantTokens,
		at: func(r *request) any { return &r.grantTokens },
	},
	memberDryRun: {
		name: "DryRun", field: "dryRun",
		at: func(r *request) any { return &r.dryRun },
	},
	memberDryRunModifiers: {
		name: "DryRunModifiers", field: "dryRunModifiers", max: 1, enum: []string{"IGNORE_CIPHERTEXT"},
		at: func(r *request) any { return &r.dryRunModifiers },
	},
	memberCustomKeyStoreID: {
		name: "CustomKeyStoreId", field: "customKeyStoreId", min: 1, max: 64,
		at: func(r *request) any { return &r.customKeyStoreID },
	},
	memberLimit: {
		name: "Limit", field: "limit", min: 1, max: 1000,
		at: func(r *request) any { return &r.limit },
	},
	memberMarker: {
		name: "Marker", field: "marker", min: 1, max: 1024,
		at: func(r *request) any { return &r.marker },
	},
	memberRecipient: {
		name: "Recipient", field: "recipient",
		at: func(r *request) any { return &r.recipient },
	},
}

const (
	maxKeyID        = 2048
	maxBlob         = 6144
	maxGrantTokens  = 10
	maxGrantToken   = 8192
	maxContextPairs = 1024
	maxContextSize  = 8192
)

// sm2 is of the model, and for the regions of AWS in China.
const sm2 = "SM2"

var keyPairSpecs = []string{
	"RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", sm2,
	"ECC_NIST_EDWARDS25519",
}

func contextSize(context map[string]string) (n int) {
	for name, value := range context {
		n += len(name) + len(value)
	}
	return n
}

// isOneOf reports whether a value is one of a list, for which the empty list stands for anything.
func isOneOf(enum []string, value string) bool { return len(enum) == 0 || slices.Contains(enum, value) }
