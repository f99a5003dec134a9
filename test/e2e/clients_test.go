//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
)

// clients are two pods with loopback ports, and who uses their sidecars from this machine: in the network of a pod, or over its socket.
// The keys are the MasterKey orders, which has an alias and has been rotated once, and the MasterKey other.
type clients struct {
	namespace, home             string
	keyID, arn, alias, aliasARN string
	other                       string // its ARN
	app, stranger               door   // the one may do everything with the keys, the other nothing
	sdk                         caller // of app
	blob, initial, advance      fields // data keys made before the rotation: at AWS's door with pairs, at Alibaba's with an Aad
	wrapped, message            []byte // what a root key and the Encryption SDK made
}

const loopbackPort = 8200

var endpoint = "http://127.0.0.1:" + strconv.Itoa(loopbackPort)

// user uses a client as a program would.
type user interface {
	// usesKeys does all that the client can do, and all that it can do wrong, while the keys are Enabled.
	usesKeys(t *testing.T)
	// cannotUse tries to use the key orders in a trouble.
	cannotUse(t *testing.T, why trouble)
	// canUse uses the key orders, and what was made before.
	canUse(t *testing.T)
}

// users are all clients of a door.
func (c *clients) users(t *testing.T, d door) map[string]user {
	t.Helper()
	return map[string]user{
		"the AWS CLI":            &awsUser{clients: c, caller: c.newCLI(t, d), old: true, slow: true},
		"the AWS SDK for Go":     &awsUser{clients: c, caller: newGoSDK(d), class: "GenericAPIError"},
		"boto3":                  &awsUser{clients: c, caller: c.newBoto(t, d), class: "ClientError", old: true},
		"the AWS SDK for Node":   &awsUser{clients: c, caller: c.newJavaScript(t, d), class: "KMSServiceException", silent: "UnknownError"},
		"the AWS Encryption SDK": &encryptionSDKUser{c, c.newJavaScript(t, d)},
		"a root key":             &rootKeyUser{c, forward(t, d.socket)},
		"Alibaba's SDK for Go":   &alibabaUser{c, c.newAlibaba(t, d)},
	}
}

// trouble is why a client cannot use a key, as each of them has to tell it.
type trouble struct {
	state         v1alpha1.MasterKeyState // of the key orders; empty: it is a trouble of the door with every call
	using, asking exception               // of operations that use a key, and of those that ask about keys or for random bytes
	alibaba       refusal
	rootKey       string
	passing       bool // now and then a call gets through and is refused for something else
	slow          bool // it takes a while to say so
}

// told reports whether an answer has that code, where others may come.
func (why trouble) told(code string) func(fields, *failure) bool {
	return func(_ fields, failed *failure) bool { return !why.passing || failed != nil && failed.Code == code }
}

// eachAsks has all users do something at the same time.
func eachAsks(t *testing.T, what string, users map[string]user, does func(*testing.T, user)) {
	t.Helper()
	t.Run(what, func(t *testing.T) {
		for name, u := range users {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				does(t, u)
			})
		}
	})
}

// clientsOfTheClouds has clients of AWS KMS and of an instance of Alibaba Cloud KMS use the sidecar of a pod, unmodified.
func clientsOfTheClouds(t *testing.T) {
	c := newClients(t)
	app, stranger := c.users(t, c.app), c.users(t, c.stranger)
	t.Run("every option of generate-data-key-without-plaintext", c.generate)
	t.Run("the CLI opens the blob of a DataKeyRequest", c.declared)
	eachAsks(t, "all that there is", app, func(t *testing.T, u user) { u.usesKeys(t) })

	cannot := func(users map[string]user, what string, why trouble) {
		eachAsks(t, what, users, func(t *testing.T, u user) { u.cannotUse(t, why) })
	}
	can := func(what string) {
		c.waitAnswer(t, "")
		eachAsks(t, what, app, func(t *testing.T, u user) { u.canUse(t) })
	}
	cannot(stranger, "without permission", denied)
	cannot(c.users(t, localDoor(t, kmsv1.NewKeyServiceClient(fault{}))), "the key service fails", faulty)
	for _, why := range []trouble{
		{
			state: v1alpha1.MasterKeyStateDisabled, using: exception{name: "DisabledException", message: c.arn + " is disabled."},
			alibaba: refusal{"Rejected.Disabled", http.StatusConflict, "The request was rejected because the key state is Disabled."},
			rootKey: "the service answered DisabledException: enable the key",
		},
		{
			state:   v1alpha1.MasterKeyStatePendingDeletion,
			using:   exception{name: "KMSInvalidStateException", message: c.arn + " is pending deletion."},
			alibaba: refusal{"Rejected.PendingDeletion", http.StatusConflict, "The request was rejected because the key state is PendingDeletion."},
			rootKey: "the service answered KMSInvalidStateException: cancel the key's deletion, or wait until it is available",
		},
	} {
		c.setState(t, why.state)
		c.waitAnswer(t, why.using.name)
		c.waitDeletionDate(t, why.state == v1alpha1.MasterKeyStatePendingDeletion)
		cannot(app, "the key is "+string(why.state), why)
	}
	c.setState(t, v1alpha1.MasterKeyStateEnabled)
	can("the key is Enabled again")

	keyServiceRefused(t, c.app, "--append")
	c.waitAnswer(t, away.using.name)
	cannot(app, "the key service is away", away)
	keyServiceRefused(t, c.app, "--delete")
	can("the key service is back")

	askTooMuch(t, c.stranger)
	cannot(stranger, "too many calls", throttled)
}

var (
	denied = trouble{
		using: exception{name: "AccessDeniedException"}, asking: exception{name: "AccessDeniedException"}, // and the verb that is missing
		alibaba: refusal{"Forbidden.NoPermission", http.StatusForbidden, "This operation for "},
		rootKey: "the service answered AccessDeniedException: allow kms:Encrypt and kms:Decrypt on the key to the manager's role",
	}
	faulty = trouble{
		using:   exception{"KMSInternalException", "the key service failed: try again", http.StatusInternalServerError},
		asking:  exception{"KMSInternalException", "the key service failed: try again", http.StatusInternalServerError},
		alibaba: refusal{"InternalFailure", http.StatusInternalServerError, "Internal Failure."},
		rootKey: "the service answered KMSInternalException: see that the service is well; the manager tries again",
	}
	away = trouble{
		using: exception{
			"KeyUnavailableException", "the key service cannot be reached or cannot answer now: try again", http.StatusInternalServerError,
		},
		asking: exception{
			"DependencyTimeoutException", "the key service cannot be reached or cannot answer now: try again", http.StatusServiceUnavailable,
		},
		alibaba: refusal{"ServiceUnavailableTemporary", http.StatusServiceUnavailable, "Service Unavailable Temporary."},
		slow:    true,
		rootKey: "the service answered KeyUnavailableException: see that the service is well; the manager tries again",
	}
	throttled = trouble{
		using:   exception{name: "ThrottlingException", message: "…too many requests of this pod were refused"},
		asking:  exception{name: "ThrottlingException", message: "…too many requests of this pod were refused"},
		alibaba: refusal{"Rejected.Throttling", http.StatusTooManyRequests, "QPS Limit Exceeded."},
		rootKey: "the service answered ThrottlingException: see that the service is well; the manager tries again",
		passing: true,
	}
)

func newClients(t *testing.T) *clients {
	t.Helper()
	c := &clients{namespace: tenant(t, "restricted", "orders"), home: t.TempDir(), alias: "alias/orders-prod"}
	mergePatch(t, &v1alpha1.MasterKey{}, c.namespace, "orders", `{"spec":{"aliases":["orders-prod"]}}`)
	meta := metav1.ObjectMeta{Namespace: c.namespace, Name: "uses-keys-in-every-way"}
	kube.create(t, masterKey(c.namespace, "other"),
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.ResourceMasterKeys}, Verbs: []string{"*"},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: c.namespace, Name: "app"}},
		},
	)
	kube.create(t, decrypter(c.namespace, "stranger", "orders")...)
	for _, serviceAccount := range []string{"app", "stranger"} {
		p := pod(c.namespace, serviceAccount, "orders")
		p.Spec.ServiceAccountName = serviceAccount
		p.Annotations[v1alpha1.AnnotationLoopbackPort] = strconv.Itoa(loopbackPort)
		kube.create(t, p)
	}
	c.build(t)
	c.other = c.key(t, "other", 0).ARN
	orders := c.key(t, "orders", 1)
	c.keyID, c.arn = orders.KeyID, orders.ARN
	c.aliasARN = strings.Replace(c.arn, ":key/"+c.keyID, ":"+c.alias, 1)
	c.app, c.stranger = c.doorOf(t, "app"), c.doorOf(t, "stranger")
	c.sdk = newGoSDK(c.app)
	c.makeAndRotate(t)
	return c
}

// key waits for a MasterKey with its ARN and that many aliases.
func (c *clients) key(t *testing.T, name string, aliases int) v1alpha1.MasterKeyStatus {
	t.Helper()
	return kube.waitFor(t, &v1alpha1.MasterKeyList{}, c.namespace, "MasterKey "+name+" with its aliases", func(o client.Object) bool {
		status := o.(*v1alpha1.MasterKey).Status
		return o.GetName() == name && status.ARN != "" && len(status.Aliases) == aliases
	}).(*v1alpha1.MasterKey).Status
}

func (c *clients) doorOf(t *testing.T, name string) door {
	t.Helper()
	ready := kube.waitPodReady(t, c.namespace, name)
	d := doorOf(t, c.namespace, name)
	want := corev1.EnvVar{Name: "AWS_ENDPOINT_URL_KMS", Value: d.endpoint}
	if env := ready.Spec.Containers[0].Env; len(env) != 2 || env[1] != want {
		t.Errorf("the application has the environment %v, want the socket and %v", env, want)
	}
	return d
}

// makeAndRotate makes data keys, and rotates the key.
func (c *clients) makeAndRotate(t *testing.T) {
	t.Helper()
	c.blob = must(t, c.sdk, "GenerateDataKey", fields{"KeyId": c.alias, "KeySpec": "AES_256", "EncryptionContext": pairs})
	alibaba, request := c.newAlibaba(t, c.app), fields{"KeyId": c.alias, "NumberOfBytes": 32, "Aad": aad}
	c.initial, c.advance = must(t, alibaba, "GenerateDataKey", request), must(t, alibaba, "AdvanceGenerateDataKey", request)
	requestRotation(t, &v1alpha1.MasterKey{}, c.namespace, "orders", "for its clients")
	waitRotated(t, c.namespace, "orders", 2, 1)
	callUntil(t, alibaba, "AdvanceGenerateDataKey", request, func(answer fields, _ *failure) bool {
		return answer != nil && answer["KeyVersionId"] != c.advance["KeyVersionId"]
	})
}

// callUntil calls until the answer is as wanted, and returns it: replicas see what changes a little later.
func callUntil(
	t *testing.T, c caller, operation string, request fields, wanted func(fields, *failure) bool,
) (answer fields, failed *failure) {
	t.Helper()
	kube.poll(t, operation, func() bool {
		answer, failed = c.call(t, operation, request)
		return wanted(answer, failed)
	})
	return answer, failed
}

// waitAnswer waits until the door of app answers so, with an exception or with a data key.
func (c *clients) waitAnswer(t *testing.T, exception string) {
	t.Helper()
	request := fields{"KeyId": c.arn, "KeySpec": "AES_256"}
	callUntil(t, c.sdk, "GenerateDataKeyWithoutPlaintext", request, func(_ fields, failed *failure) bool {
		return failed == nil && exception == "" || failed != nil && failed.Code == exception
	})
}

// waitDeletionDate waits until the door of app tells of a date of the key's deletion, or of none: it is recorded after the state counts.
func (c *clients) waitDeletionDate(t *testing.T, has bool) {
	t.Helper()
	callUntil(t, c.sdk, "DescribeKey", fields{"KeyId": c.arn}, func(answer fields, failed *failure) bool {
		described, _ := answer["KeyMetadata"].(map[string]any)
		return failed == nil && (described["DeletionDate"] != nil) == has
	})
}

func (c *clients) setState(t *testing.T, state v1alpha1.MasterKeyState) {
	t.Helper()
	mergePatch(t, &v1alpha1.MasterKey{}, c.namespace, "orders", fmt.Sprintf(`{"spec":{"state":%q}}`, state))
}

// keyServiceRefused has the network of a pod refuse its connections to the key service, or no longer.
func keyServiceRefused(t *testing.T, d door, action string) {
	t.Helper()
	rule := []string{"--wait", action, "OUTPUT", "--protocol", "tcp", "--dport", "8443", "--jump", "REJECT", "--reject-with", "tcp-reset"}
	if out, err := d.command(t, "/", "iptables", rule...).CombinedOutput(); err != nil {
		t.Fatalf("iptables: %v: %s", err, out)
	}
}

// askTooMuch has a pod ask for what it may not have until the test ends, far more often than the key service answers.
func askTooMuch(t *testing.T, d door) {
	t.Helper()
	sdk, done := newGoSDK(d), make(chan struct{})
	go func() {
		defer close(done)
		for t.Context().Err() == nil {
			_, _ = sdk.GenerateRandom(t.Context(), &awskms.GenerateRandomInput{NumberOfBytes: aws.Int32(1)})
		}
	}()
	t.Cleanup(func() { <-done })
}
