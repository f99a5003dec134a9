package aws

import (
	"context"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// keyMetadata is KeyMetadata of the model, without the members that keys of Datakeys never have.
type keyMetadata struct {
	AWSAccountID          string   `json:"AWSAccountId"`
	KeyID                 string   `json:"KeyId"`
	ARN                   string   `json:"Arn"`
	CreationDate          seconds  `json:"CreationDate,omitempty"`
	Enabled               bool     `json:"Enabled"`
	Description           string   `json:"Description"`
	KeyUsage              string   `json:"KeyUsage"`
	KeyState              string   `json:"KeyState"`
	DeletionDate          seconds  `json:"DeletionDate,omitempty"`
	Origin                string   `json:"Origin"`
	KeyManager            string   `json:"KeyManager"`
	CustomerMasterKeySpec string   `json:"CustomerMasterKeySpec"`
	KeySpec               string   `json:"KeySpec"`
	EncryptionAlgorithms  []string `json:"EncryptionAlgorithms"`
	MultiRegion           bool     `json:"MultiRegion"`
	CurrentKeyMaterialID  string   `json:"CurrentKeyMaterialId,omitempty"`
}

// seconds is a time as JSON 1.1 has it: since the epoch, with a fraction.
type seconds float64

func secondsOf(t *timestamppb.Timestamp) seconds {
	if t == nil {
		return 0
	}
	return seconds(t.AsTime().UnixMilli()) / 1000
}

func describeKey(ctx context.Context, d *Door, x *exchange) *exception {
	a, err := d.kms.DescribeKey(ctx, &kmsv1.DescribeKeyRequest{KeyId: x.request.keyID})
	if err != nil {
		return x.refused(err)
	}
	k := a.GetKey()
	if e := x.made(len(k.GetKeyId()), len(k.GetArn())); e != nil {
		return e
	}
	m := keyMetadata{
		AWSAccountID: account(k.GetArn()), KeyID: k.GetKeyId(), ARN: k.GetArn(), Description: k.GetDescription(),
		CreationDate: secondsOf(k.GetCreationTime()), KeyState: k.GetKeyState(), Enabled: k.GetKeyState() == "Enabled",
		KeyUsage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", KeyManager: "CUSTOMER", CustomerMasterKeySpec: symmetricDefault,
		KeySpec: symmetricDefault, EncryptionAlgorithms: []string{symmetricDefault},
	}
	if k.GetKeyState() == "PendingDeletion" {
		m.DeletionDate = secondsOf(k.GetDeletionTime())
	}
	if id := k.GetMaterialId(); len(id) > 0 {
		m.CurrentKeyMaterialID = materialID(id)
	}
	return x.object(struct{ KeyMetadata keyMetadata }{m})
}

// account is what stands in an ARN where AWS has the account: the namespace.
func account(arn string) string {
	if parts := strings.SplitN(arn, ":", 6); len(parts) == 6 {
		return parts[4]
	}
	return ""
}

// page is what lists have beside their items.
type page struct {
	NextMarker string `json:"NextMarker,omitempty"`
	Truncated  bool   `json:"Truncated"`
}

func pageOf(next string) page { return page{next, next != ""} }

type keyListEntry struct {
	KeyID  string `json:"KeyId"`
	KeyARN string `json:"KeyArn"`
}

func listKeys(ctx context.Context, d *Door, x *exchange) *exception {
	a, err := d.kms.ListKeys(ctx, &kmsv1.ListKeysRequest{Limit: x.request.limit, Marker: x.request.marker})
	if err != nil {
		return x.refused(err)
	}
	entries := make([]keyListEntry, len(a.GetKeys()))
	for i, k := range a.GetKeys() {
		entries[i] = keyListEntry{k.GetKeyId(), k.GetArn()}
	}
	return x.object(struct {
		Keys []keyListEntry
		page
	}{entries, pageOf(a.GetNextMarker())})
}

type aliasListEntry struct {
	AliasName   string `json:"AliasName"`
	AliasARN    string `json:"AliasArn"`
	TargetKeyID string `json:"TargetKeyId"`
}

func listAliases(ctx context.Context, d *Door, x *exchange) *exception {
	a, err := d.kms.ListAliases(ctx, &kmsv1.ListAliasesRequest{KeyId: x.request.keyID, Limit: x.request.limit, Marker: x.request.marker})
	if err != nil {
		return x.refused(err)
	}
	entries := make([]aliasListEntry, len(a.GetAliases()))
	for i, alias := range a.GetAliases() {
		entries[i] = aliasListEntry{alias.GetAliasName(), alias.GetAliasArn(), alias.GetTargetKeyId()}
	}
	return x.object(struct {
		Aliases []aliasListEntry
		page
	}{entries, pageOf(a.GetNextMarker())})
}
