// Package docs_test holds the documents against the code that they speak of.
package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

const (
	root   = "../.."
	kmsAPI = "docs/kms-api.md"
)

// What a row may say, as its first words.
var verdicts = []string{"supported", "refused", "not applicable"}

// operation is what one system publishes of an operation: the members of its request and of its answer.
type operation struct{ asks, answers string }

// The operations of AWS KMS on symmetric keys and their data keys that the key service has (service model 2014-11-01 as of
// aws-sdk-go-v2/service/kms v1.62.4).
var awsOperations = map[string]operation{
	"GenerateDataKey": {
		"KeyId EncryptionContext NumberOfBytes KeySpec GrantTokens Recipient DryRun",
		"CiphertextBlob Plaintext KeyId CiphertextForRecipient KeyMaterialId",
	},
	"GenerateDataKeyWithoutPlaintext": {
		"KeyId EncryptionContext KeySpec NumberOfBytes GrantTokens DryRun",
		"CiphertextBlob KeyId KeyMaterialId",
	},
	"GenerateDataKeyPair": {
		"KeyId KeyPairSpec EncryptionContext GrantTokens Recipient DryRun",
		"PrivateKeyCiphertextBlob PrivateKeyPlaintext PublicKey KeyId KeyPairSpec CiphertextForRecipient KeyMaterialId",
	},
	"GenerateDataKeyPairWithoutPlaintext": {
		"KeyId KeyPairSpec EncryptionContext GrantTokens DryRun",
		"PrivateKeyCiphertextBlob PublicKey KeyId KeyPairSpec KeyMaterialId",
	},
	"Encrypt": {
		"KeyId Plaintext EncryptionContext GrantTokens EncryptionAlgorithm DryRun",
		"CiphertextBlob KeyId EncryptionAlgorithm",
	},
	"Decrypt": {
		"CiphertextBlob EncryptionContext GrantTokens KeyId EncryptionAlgorithm Recipient DryRun DryRunModifiers",
		"KeyId Plaintext EncryptionAlgorithm CiphertextForRecipient KeyMaterialId",
	},
	"ReEncrypt": {
		"CiphertextBlob SourceEncryptionContext SourceKeyId DestinationKeyId DestinationEncryptionContext " +
			"SourceEncryptionAlgorithm DestinationEncryptionAlgorithm GrantTokens DryRun DryRunModifiers",
		"CiphertextBlob SourceKeyId KeyId SourceEncryptionAlgorithm DestinationEncryptionAlgorithm " +
			"SourceKeyMaterialId DestinationKeyMaterialId",
	},
	"GenerateRandom": {"NumberOfBytes CustomKeyStoreId Recipient", "Plaintext CiphertextForRecipient"},
	"DescribeKey": {
		"KeyId GrantTokens",
		"KeyId Arn AWSAccountId CreationDate Enabled Description KeyUsage KeyState Origin KeyManager CustomerMasterKeySpec KeySpec " +
			"EncryptionAlgorithms MultiRegion MultiRegionConfiguration DeletionDate PendingDeletionWindowInDays CurrentKeyMaterialId " +
			"CloudHsmClusterId CustomKeyStoreId ExpirationModel ValidTo XksKeyConfiguration SigningAlgorithms MacAlgorithms KeyAgreementAlgorithms",
	},
	"ListKeys":    {"Limit Marker", "Keys KeyId KeyArn NextMarker Truncated"},
	"ListAliases": {"KeyId Limit Marker", "Aliases AliasName AliasArn TargetKeyId CreationDate LastUpdatedDate NextMarker Truncated"},
}

// The same for the instance API of Alibaba Cloud KMS (dkms-gcs-go-sdk v0.5.1, api.proto), each operation together with the one that
// has Advance before its name.
var alibabaOperations = map[string]operation{
	"GenerateDataKey": {"KeyId Algorithm NumberOfBytes Aad", "KeyId Iv Plaintext CiphertextBlob RequestId Algorithm KeyVersionId"},
	"GenerateDataKeyPair": {
		"KeyId Algorithm KeyPairSpec KeyFormat Aad",
		"KeyId Iv KeyPairSpec PrivateKeyPlaintext PrivateKeyCiphertextBlob PublicKey RequestId Algorithm KeyVersionId",
	},
	"GenerateDataKeyPairWithoutPlaintext": {
		"KeyId Algorithm KeyPairSpec KeyFormat Aad",
		"KeyId Iv KeyPairSpec PrivateKeyCiphertextBlob PublicKey RequestId Algorithm KeyVersionId",
	},
	"Encrypt":        {"KeyId Plaintext Algorithm Aad Iv PaddingMode", "KeyId CiphertextBlob Iv RequestId Algorithm PaddingMode KeyVersionId"},
	"Decrypt":        {"CiphertextBlob KeyId Algorithm Aad Iv PaddingMode", "KeyId Plaintext RequestId Algorithm PaddingMode KeyVersionId"},
	"GenerateRandom": {"Length", "Random RequestId"},
}

// Operations of both systems that are no call of the key service.
const otherOperations = `CancelKeyDeletion ConnectCustomKeyStore CreateAlias CreateCustomKeyStore CreateGrant CreateKey Decapsulate DeleteAlias
	DeleteCustomKeyStore DeleteImportedKeyMaterial DeriveSharedSecret DescribeCustomKeyStores DisableKey DisableKeyRotation
	DisconnectCustomKeyStore EnableKey EnableKeyRotation Encapsulate GenerateMac GetKeyLastUsage GetKeyPolicy GetKeyRotationStatus
	GetParametersForImport GetPublicKey ImportKeyMaterial ListGrants ListKeyPolicies ListKeyRotations ListResourceTags
	ListRetirableGrants PutKeyPolicy ReplicateKey RetireGrant RevokeGrant RotateKeyOnDemand ScheduleKeyDeletion Sign TagResource
	UntagResource UpdateAlias UpdateCustomKeyStore UpdateKeyDescription UpdatePrimaryRegion Verify VerifyMac
	Hmac GetSecretValue AdvanceGenerateDataKey AdvanceGenerateDataKeyPair AdvanceGenerateDataKeyPairWithoutPlaintext AdvanceEncrypt AdvanceDecrypt`

// row is one line of a table, by the titles of its columns.
type row struct {
	section string // the heading above, without ticks
	part    string // the line before the table: "Asked:" or "Answered:"
	cells   map[string]string
	text    string
}

var codes = regexp.MustCompile("`([^`]+)`")

// words are what stands in ticks.
func words(cell string) []string {
	var out []string
	for _, m := range codes.FindAllStringSubmatch(cell, -1) {
		out = append(out, m[1])
	}
	return out
}

func tables(t *testing.T, path string) []row {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	var titles []string
	section, before, part := "", "", ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if heading, ok := strings.CutPrefix(line, "### "); ok {
			section = strings.ReplaceAll(heading, "`", "")
		}
		if !strings.HasPrefix(line, "|") {
			titles = nil
			if line != "" {
				before = line
			}
			continue
		}
		if strings.HasPrefix(line, "|---") {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		if titles == nil {
			titles, part = cells, before
			continue
		}
		if len(cells) != len(titles) {
			t.Errorf("%s: got %d cells, want %d: %s", path, len(cells), len(titles), line)
			continue
		}
		r := row{section: section, part: part, cells: map[string]string{}, text: line}
		for i, title := range titles {
			r.cells[title] = cells[i]
		}
		rows = append(rows, r)
	}
	return rows
}

func TestEveryRowOfTheKMSAPISaysWhatHoldsAndNamesTestsThatExist(t *testing.T) {
	tests := testsOfTheTree(t)
	rows := tables(t, kmsAPI)
	if len(rows) < 100 {
		t.Fatalf("got %d rows, want 100 or more", len(rows))
	}
	for _, r := range rows {
		verdict, ok := r.cells["what holds"]
		if !ok {
			continue
		}
		if !slices.ContainsFunc(verdicts, func(v string) bool { return strings.HasPrefix(verdict, v) }) {
			t.Errorf("%s: must begin with one of %q: %s", r.section, verdicts, r.text)
		}
		named := words(r.cells["test"])
		if len(named) == 0 {
			t.Errorf("%s: names no test: %s", r.section, r.text)
		}
		for _, name := range named {
			function, sub, _ := strings.Cut(name, "/")
			source, ok := tests[function]
			if !ok {
				t.Errorf("%s: there is no test %s: %s", r.section, function, r.text)
			} else if sub != "" && !strings.Contains(source, `"`+sub+`"`) {
				t.Errorf("%s: %s has no row %q: %s", r.section, function, sub, r.text)
			}
		}
	}
}

func TestTheKMSAPIHasEveryFieldOfTheKeyService(t *testing.T) {
	named := namesIn(t, "field")
	methods := kmsv1.File_api_kms_v1_kms_proto.Services().ByName("KeyService").Methods()
	for i := range methods.Len() {
		method := methods.Get(i)
		section := string(method.Name())
		for _, message := range []protoreflect.MessageDescriptor{method.Input(), method.Output()} {
			for _, field := range fieldsOf(message) {
				if !slices.Contains(named[section], field) {
					t.Errorf("section %s lacks the field %s of %s", section, field, message.Name())
				}
			}
		}
	}
	for section, fields := range named {
		method := methods.ByName(protoreflect.Name(section))
		if method == nil {
			t.Errorf("the key service has no method %s", section)
			continue
		}
		for _, field := range fields {
			if !slices.Contains(append(fieldsOf(method.Input()), fieldsOf(method.Output())...), field) {
				t.Errorf("%s has no field %s", section, field)
			}
		}
	}
}

// What does not apply to the key service has no field there: a caller cannot set it, and is not told it.
func TestTheKeyServiceHasNoFieldForWhatDoesNotApply(t *testing.T) {
	methods := kmsv1.File_api_kms_v1_kms_proto.Services().ByName("KeyService").Methods()
	capital := regexp.MustCompile(`([a-z])([A-Z])`)
	seen := 0
	for _, r := range tables(t, kmsAPI) {
		if !strings.HasPrefix(r.cells["what holds"], "not applicable to the key service: ") {
			continue
		}
		method := methods.ByName(protoreflect.Name(r.section))
		if method == nil || r.part != "Asked:" && r.part != "Answered:" {
			t.Errorf("%s: stands in no table of an operation: %s", r.section, r.text)
			continue
		}
		message := method.Input()
		if r.part == "Answered:" {
			message = method.Output()
		}
		if r.cells["field"] != "" {
			t.Errorf("%s: names a field: %s", r.section, r.text)
		}
		for _, parameter := range words(r.cells["AWS"] + r.cells["Alibaba"]) {
			seen++
			field := strings.ToLower(capital.ReplaceAllString(parameter, "${1}_${2}"))
			if slices.Contains(fieldsOf(message), field) {
				t.Errorf("%s: %s has the field %s: %s", r.section, message.Name(), field, r.text)
			}
		}
	}
	if seen < 50 {
		t.Errorf("got %d parameters, want 50 or more", seen)
	}
}

// fieldsOf names the fields of a message and of what it holds of this API: results.refusal.code is code.
func fieldsOf(message protoreflect.MessageDescriptor) []string {
	var names []string
	for i := range message.Fields().Len() {
		field := message.Fields().Get(i)
		names = append(names, string(field.Name()))
		if inner := field.Message(); inner != nil && !field.IsMap() && inner.ParentFile() == message.ParentFile() {
			names = append(names, fieldsOf(inner)...)
		}
	}
	return names
}

func TestTheKMSAPIHasEveryOperationAndParameterOfTheTwoSystems(t *testing.T) {
	for column, operations := range map[string]map[string]operation{"AWS": awsOperations, "Alibaba": alibabaOperations} {
		named := namesIn(t, column)
		for section, op := range operations {
			for parameter := range strings.FieldsSeq(op.asks + " " + op.answers) {
				if !slices.Contains(named[section], parameter) {
					t.Errorf("section %s lacks the parameter %s of %s", section, parameter, column)
				}
			}
			for _, parameter := range named[section] {
				if !slices.Contains(strings.Fields(op.asks+" "+op.answers), parameter) {
					t.Errorf("section %s: %s has no parameter %s", section, column, parameter)
				}
			}
		}
	}
	var operations []string
	for _, names := range namesIn(t, "operation") {
		operations = append(operations, names...)
	}
	slices.Sort(operations)
	want := strings.Fields(otherOperations)
	slices.Sort(want)
	for _, name := range want {
		if !slices.Contains(operations, name) {
			t.Errorf("the operation %s is missing", name)
		}
	}
}

// namesIn lists what one column names, by section.
func namesIn(t *testing.T, column string) map[string][]string {
	t.Helper()
	named := map[string][]string{}
	for _, r := range tables(t, kmsAPI) {
		if names := words(r.cells[column]); len(names) > 0 {
			named[r.section] = append(named[r.section], names...)
		}
	}
	return named
}

// testsOfTheTree maps each test function to the source of its file.
func testsOfTheTree(t *testing.T) map[string]string {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	tests := map[string]string{}
	walkTests(t, func(_, source string) {
		for _, m := range function.FindAllStringSubmatch(source, -1) {
			tests[m[1]] = source
		}
	})
	return tests
}

// walkTests calls f with the path from the root, and the source, of each file of tests.
func walkTests(t *testing.T, f func(path, source string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		from, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f(from, read(t, from))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
