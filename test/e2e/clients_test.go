//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	awstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// clients is a pod with a loopback port, and who uses its sidecar from this machine: in the network of the pod, or over its socket.
type clients struct {
	namespace, keyID, arn string
	process               int // of the pod's application
	home                  string
}

const loopbackPort = 8200

// clientsOfTheClouds has the AWS CLI and Alibaba's SDK, on the loopback port, and the AWS SDK for Go, on the socket, use a sidecar in a pod
// as if it was AWS KMS or an instance of Alibaba Cloud KMS.
func clientsOfTheClouds(t *testing.T) {
	c := newClients(t)
	t.Run("the CLI and every option of generate-data-key-without-plaintext", c.generate)
	t.Run("the CLI opens the blob of a DataKeyRequest", c.declared)
	t.Run("the SDK for Go on the socket", c.sdk)
	t.Run("Alibaba's SDK", c.alibaba)
	t.Run("what is refused", c.refused)
}

func newClients(t *testing.T) *clients {
	t.Helper()
	namespace := tenant(t, "restricted", "orders")
	mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"aliases":["orders-prod"]}}`)
	meta := metav1.ObjectMeta{Namespace: namespace, Name: "uses-keys"}
	kube.create(t,
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.ResourceMasterKeys},
			Verbs: []string{v1alpha1.VerbGenerateDataKey, v1alpha1.VerbGenerateDataKeyWithoutPlaintext, v1alpha1.VerbDecrypt, v1alpha1.VerbDescribeKey},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "app"}},
		},
	)
	key := kube.waitFor(t, &v1alpha1.MasterKeyList{}, namespace, "MasterKey orders with its alias", func(o client.Object) bool {
		return len(o.(*v1alpha1.MasterKey).Status.Aliases) == 1
	}).(*v1alpha1.MasterKey)
	p := pod(namespace, "clients", "orders")
	p.Annotations[v1alpha1.AnnotationLoopbackPort] = strconv.Itoa(loopbackPort)
	kube.create(t, p)
	ready := kube.waitPodReady(t, namespace, p.Name)
	want := corev1.EnvVar{Name: "AWS_ENDPOINT_URL_KMS", Value: endpoint}
	if env := ready.Spec.Containers[0].Env; len(env) != 2 || env[1] != want {
		t.Errorf("the application has the environment %v, want the socket and %v", env, want)
	}
	return &clients{
		namespace: namespace, keyID: key.Status.KeyID, arn: key.Status.ARN, process: processOf(t, namespace, p.Name, "app"), home: t.TempDir(),
	}
}

var endpoint = "http://127.0.0.1:" + strconv.Itoa(loopbackPort)

// debianCLI is the AWS CLI as Debian has it, which `make test-e2e` installs.
const debianCLI = "/usr/bin/aws"

// aws runs it in the network of the pod.
func (c *clients) aws(t *testing.T, args ...string) (stdout []byte, err error) {
	t.Helper()
	command := c.inPod(t, debianCLI, append([]string{"kms", "--endpoint-url", endpoint}, args...)...)
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + c.home, "AWS_ACCESS_KEY_ID=any", "AWS_SECRET_ACCESS_KEY=any", "AWS_DEFAULT_REGION=eu-central-1",
		"AWS_MAX_ATTEMPTS=1", "AWS_PAGER=",
	}
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err = command.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout, err
}

// inPod is a command in the network of the pod.
func (c *clients) inPod(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", c.process), "--", name}, args...)...)
}

// generated is what the CLI prints of a data key.
type generated struct {
	CiphertextBlob, KeyID, Plaintext string
}

func (c *clients) generate(t *testing.T) {
	file := func(name, content string) string {
		path := filepath.Join(c.home, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "file://" + path
	}
	alias := strings.Replace(c.arn, ":key/"+c.keyID, ":alias/orders-prod", 1)
	const twoPairs = "tenant=a,app=b c"
	for name, test := range map[string]struct {
		args    []string
		context string
		bytes   int
	}{
		"by key ID":            {[]string{"--key-id", c.keyID, "--key-spec", "AES_256"}, "", 32},
		"by ARN":               {[]string{"--key-id", c.arn, "--key-spec", "AES_128"}, "", 16},
		"by alias":             {[]string{"--key-id", "alias/orders-prod", "--number-of-bytes", "64"}, "", 64},
		"by the alias's ARN":   {[]string{"--key-id", alias, "--number-of-bytes", "1024"}, "", 1024},
		"with a context":       {[]string{"--key-id", c.keyID, "--key-spec", "AES_256", "--encryption-context", twoPairs}, twoPairs, 32},
		"with one as JSON":     {[]string{"--key-id", c.keyID, "--key-spec", "AES_256", "--encryption-context", `{"app":"b c","tenant":"a"}`}, twoPairs, 32},
		"from JSON":            {[]string{"--cli-input-json", file("in.json", `{"KeyId":"alias/orders-prod","NumberOfBytes":24}`)}, "", 24},
		"from YAML":            {[]string{"--cli-input-yaml", file("in.yaml", "KeyId: alias/orders-prod\nNumberOfBytes: 48\n")}, "", 48},
		"a flag before a file": {[]string{"--cli-input-json", file("in2.json", `{"KeyId":"none","NumberOfBytes":24}`), "--key-id", c.arn}, "", 24},
	} {
		t.Run(name, func(t *testing.T) {
			made := decode(t, c.must(t, append([]string{"generate-data-key-without-plaintext"}, test.args...)...))
			if made.KeyID != c.arn || made.Plaintext != "" || made.CiphertextBlob == "" {
				t.Errorf("got a data key of %q, plaintext: %v", made.KeyID, made.Plaintext != "")
			}
			opened := c.opened(t, made.CiphertextBlob, test.context)
			if opened.KeyID != c.arn || len(raw(t, opened.Plaintext)) != test.bytes {
				t.Errorf("it opens to %d bytes of %q, want %d", len(raw(t, opened.Plaintext)), opened.KeyID, test.bytes)
			}
		})
	}
	skeleton := c.must(t, "generate-data-key-without-plaintext", "--generate-cli-skeleton")
	if !bytes.Contains(skeleton, []byte(`"EncryptionContext"`)) {
		t.Errorf("the skeleton is %s", skeleton)
	}
}

// declared opens the blob in the Secret of a DataKeyRequest with what the Secret says.
func (c *clients) declared(t *testing.T) {
	var secret corev1.Secret
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: "orders"}, &secret); err != nil {
		t.Fatal(err)
	}
	blob := base64.StdEncoding.EncodeToString(secret.Data[v1alpha1.SecretKeyCiphertextBlob])
	opened := c.opened(t, blob, string(secret.Data[v1alpha1.SecretKeyEncryptionContext]))
	if !bytes.Equal(raw(t, opened.Plaintext), plaintextOf(t, c.namespace, "orders")) {
		t.Error("the CLI opens another data key")
	}
	c.wantRefused(t, "InvalidCiphertextException", "decrypt", "--ciphertext-blob", blob, "--encryption-context", "app=other")
}

// awsOn is the SDK for Go on a pod's socket.
func awsOn(socket string) *awskms.Client {
	return awskms.New(awskms.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String("http://datakeys"), RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "any", SecretAccessKey: "any"}, nil
		}),
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}},
	})
}

func (c *clients) sdk(t *testing.T) {
	service := awsOn(c.socket())
	pairs := map[string]string{"tenant": "ä", "app": "b"}
	made, err := service.GenerateDataKey(t.Context(), &awskms.GenerateDataKeyInput{
		KeyId: aws.String("alias/orders-prod"), KeySpec: awstypes.DataKeySpecAes256, EncryptionContext: pairs,
	})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := service.Decrypt(t.Context(), &awskms.DecryptInput{
		CiphertextBlob: made.CiphertextBlob, EncryptionContext: pairs, KeyId: aws.String(c.arn),
	})
	if err != nil || !bytes.Equal(opened.Plaintext, made.Plaintext) || len(made.Plaintext) != 32 || aws.ToString(opened.KeyId) != c.arn {
		t.Errorf("it opens as something else, of %q (%v)", aws.ToString(opened.KeyId), err)
	}
	_, err = service.Decrypt(t.Context(), &awskms.DecryptInput{CiphertextBlob: made.CiphertextBlob})
	if _, ok := errors.AsType[*awstypes.InvalidCiphertextException](err); !ok {
		t.Errorf("without its context: got %v", err)
	}
	described, err := service.DescribeKey(t.Context(), &awskms.DescribeKeyInput{KeyId: aws.String(c.keyID)})
	if err != nil || described.KeyMetadata.KeyState != awstypes.KeyStateEnabled || aws.ToString(described.KeyMetadata.Arn) != c.arn {
		t.Errorf("DescribeKey: got %+v (%v)", described, err)
	}
}

// alibaba makes data keys under the initial and under the primary version, which are two, and opens each as it has to be opened.
func (c *clients) alibaba(t *testing.T) {
	requestRotation(t, &v1alpha1.MasterKey{}, c.namespace, "orders", "for Alibaba")
	waitRotated(t, c.namespace, "orders", 2, 1)
	program := filepath.Join(c.home, "alibaba")
	if err := run(t.Context(), state, "go", "build", "-C", "test/alibaba/client", "-o", program, "."); err != nil {
		t.Fatal(err)
	}
	type fields map[string]any
	call := func(operation string, request fields) fields {
		t.Helper()
		asked, err := json.Marshal(fields{"operation": operation, "request": request})
		if err != nil {
			t.Fatal(err)
		}
		command := c.inPod(t, program, "-endpoint", strings.TrimPrefix(endpoint, "http://"))
		command.Stdin, command.Stderr = bytes.NewReader(asked), os.Stderr
		stdout, err := command.Output()
		var answer struct{ Response, Error fields }
		if err := errors.Join(err, json.Unmarshal(stdout, &answer)); err != nil {
			t.Fatal(err)
		}
		if answer.Error != nil {
			return answer.Error
		}
		return answer.Response
	}
	aad := base64.StdEncoding.EncodeToString([]byte("tenant a"))
	initial := call("GenerateDataKey", fields{"KeyId": "alias/orders-prod", "NumberOfBytes": 32, "Aad": aad})
	var advance fields
	for version := ""; !strings.HasPrefix(version, c.keyID+"-v2-"); version = fmt.Sprint(advance["KeyVersionId"]) { // within 10 s, as documented
		advance = call("AdvanceGenerateDataKey", fields{"KeyId": "alias/orders-prod", "NumberOfBytes": 32, "Aad": aad})
		if advance["code"] != nil {
			t.Fatalf("AdvanceGenerateDataKey: got %v", advance)
		}
	}
	for _, made := range []fields{initial, advance} {
		if made["KeyId"] != c.keyID || made["Algorithm"] != "AES_GCM" || made["Plaintext"] == nil {
			t.Fatalf("got a data key of %v, with the fields %d", made["KeyId"], len(made))
		}
	}
	opened := call("Decrypt", fields{"KeyId": c.keyID, "CiphertextBlob": initial["CiphertextBlob"], "Iv": initial["Iv"], "Aad": aad})
	if opened["Plaintext"] != initial["Plaintext"] {
		t.Error("Decrypt opens another data key than GenerateDataKey made")
	}
	opened = call("AdvanceDecrypt", fields{"CiphertextBlob": advance["CiphertextBlob"], "Aad": aad})
	if opened["Plaintext"] != advance["Plaintext"] || opened["KeyVersionId"] != advance["KeyVersionId"] {
		t.Errorf("AdvanceDecrypt opens another data key than AdvanceGenerateDataKey made, or by version %v", opened["KeyVersionId"])
	}
	refused := call("Decrypt", fields{"KeyId": c.keyID, "CiphertextBlob": advance["CiphertextBlob"], "Iv": advance["Iv"], "Aad": aad})
	if refused["code"] != "InvalidParameter" || refused["status"] != 400.0 {
		t.Errorf("Decrypt of what AdvanceGenerateDataKey made: got %v and %v", refused["code"], refused["status"])
	}
}

func (c *clients) refused(t *testing.T) {
	made := decode(t, c.must(t, "generate-data-key", "--key-id", c.keyID, "--key-spec", "AES_256"))
	if len(raw(t, made.Plaintext)) != 32 {
		t.Error("generate-data-key gives no plaintext")
	}
	generate := []string{"generate-data-key-without-plaintext", "--key-id", c.keyID}
	c.wantRefused(t, "ValidationException", generate...)
	c.wantRefused(t, "ValidationException", append(generate, "--number-of-bytes", "1025")...)
	c.wantRefused(t, "InvalidGrantTokenException", append(generate, "--key-spec", "AES_256", "--grant-tokens", "a-token")...)
	c.wantRefused(t, "NotFoundException", "generate-data-key-without-plaintext", "--key-id", "alias/none", "--key-spec", "AES_256")
	c.wantRefused(t, "AccessDeniedException", "encrypt", "--key-id", c.keyID, "--plaintext", "aGk=")
	c.wantRefused(t, "UnsupportedOperationException", "schedule-key-deletion", "--key-id", c.keyID)
	for state, exception := range map[v1alpha1.MasterKeyState]string{
		v1alpha1.MasterKeyStateDisabled: "DisabledException", v1alpha1.MasterKeyStatePendingDeletion: "KMSInvalidStateException",
	} {
		mergePatch(t, &v1alpha1.MasterKey{}, c.namespace, "orders", fmt.Sprintf(`{"spec":{"state":%q}}`, state))
		kube.waitFor(t, &v1alpha1.MasterKeyList{}, c.namespace, "MasterKey orders "+string(state), func(o client.Object) bool {
			return o.(*v1alpha1.MasterKey).Status.State == state
		})
		c.wantRefused(t, exception, append(generate, "--key-spec", "AES_256")...)
		c.wantRefused(t, exception, "decrypt", "--ciphertext-blob", made.CiphertextBlob)
	}
	mergePatch(t, &v1alpha1.MasterKey{}, c.namespace, "orders", `{"spec":{"state":"Enabled"}}`)
}

// must runs the CLI, which succeeds.
func (c *clients) must(t *testing.T, args ...string) []byte {
	t.Helper()
	stdout, err := c.aws(t, args...)
	if err != nil {
		t.Fatalf("aws kms %q: %v", args, err)
	}
	return stdout
}

// opened decrypts with the CLI.
func (c *clients) opened(t *testing.T, blob, pairs string) generated {
	t.Helper()
	args := []string{"decrypt", "--ciphertext-blob", blob}
	if pairs != "" {
		args = append(args, "--encryption-context", pairs)
	}
	return decode(t, c.must(t, args...))
}

// wantRefused runs the CLI, which says that the service has refused.
func (c *clients) wantRefused(t *testing.T, exception string, args ...string) {
	t.Helper()
	stdout, err := c.aws(t, args...)
	exit, _ := errors.AsType[*exec.ExitError](err)
	if exit == nil || exit.ExitCode() != 254 || len(stdout) > 0 || !strings.Contains(err.Error(), "An error occurred ("+exception+")") {
		t.Errorf("aws kms %q: got %v, want %s and the status 254", args, err, exception)
	}
}

func decode(t *testing.T, stdout []byte) (g generated) {
	t.Helper()
	if err := json.Unmarshal(stdout, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func raw(t *testing.T, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
