package kms

import (
	"errors"
	"fmt"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// fieldNames are what the fields are called that name a key and what a blob is bound to.
type fieldNames struct{ key, context, aad, iv string }

var (
	plainFields       = fieldNames{"key_id", "encryption_context", "aad", "iv"}
	sourceFields      = fieldNames{"source_key_id", "source_encryption_context", "source_aad", "source_iv"}
	destinationFields = fieldNames{"destination_key_id", "destination_encryption_context", "destination_aad", ""}
)

// checkAssociated checks an encryption context and aad, each by itself.
func checkAssociated(f *fieldNames, context map[string]string, aad []byte) (envelope.AssociatedData, error) {
	if (envelope.AssociatedData{Context: context}).Validate() != nil {
		return envelope.AssociatedData{}, invalid(f.context, fmt.Errorf("must be at most %d pairs of valid UTF-8, and at most %d bytes together",
			envelope.MaxContextPairs, envelope.MaxContextSize))
	}
	if len(aad) > envelope.MaxRawSize {
		return envelope.AssociatedData{}, invalid(f.aad, fmt.Errorf("must be at most %d bytes", envelope.MaxRawSize))
	}
	return envelope.AssociatedData{Context: context, Raw: aad}, nil
}

// checkTogether checks the fields of associated data against each other.
func checkTogether(f *fieldNames, ad envelope.AssociatedData) error {
	if len(ad.Context) > 0 && len(ad.Raw) > 0 {
		return invalid(f.context, errors.New("must be empty where "+f.aad+" is set: a blob is bound to one of them"))
	}
	return nil
}

// invalidCiphertext is the error of a blob that does not open. All that it says, the blob's header says in clear.
func invalidCiphertext(message string, cause error) *Error {
	return &Error{Code: CodeInvalidArgument, Reason: kmsv1.ReasonInvalidCiphertext, Message: message, Err: cause}
}

// errDryRun is what a dry run answers that would have succeeded.
func errDryRun() *Error {
	return &Error{Code: CodeFailedPrecondition, Reason: kmsv1.ReasonDryRun, Message: "the request would have succeeded, but dry_run is set"}
}
