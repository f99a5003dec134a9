//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// fields are the members of a request or of an answer in JSON, where bytes are base64.
type fields map[string]any

// bytes is a member that holds bytes.
func (f fields) bytes(t *testing.T, name string) []byte {
	t.Helper()
	text, _ := f[name].(string)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) == 0 {
		t.Fatalf("the member %s is no base64 or empty", name)
	}
	return b
}

// plus is f with more.
func (f fields) plus(more fields) fields {
	all := maps.Clone(f)
	maps.Copy(all, more)
	return all
}

// only is f with these members alone.
func (f fields) only(names ...string) fields {
	some := fields{}
	for _, name := range names {
		some[name] = f[name]
	}
	return some
}

func b64[T string | []byte](s T) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// failure is an error as the user of a client meets it.
type failure struct {
	Code, Message string
	Class         string // the type by which a program catches it
	Status        int
	Other         string // an error of Alibaba's SDK that is not the service's
}

// caller is a client, told what to call in the names of its service.
type caller interface {
	call(t *testing.T, operation string, request fields) (fields, *failure)
}

// must calls what succeeds.
func must(t *testing.T, c caller, operation string, request fields) fields {
	t.Helper()
	answer, failed := c.call(t, operation, request)
	if failed != nil {
		t.Fatalf("%s: got %+v", operation, *failed)
	}
	return answer
}

// door is where clients find a sidecar.
type door struct {
	process  int // a process in the network of the endpoint; 0 is this one
	endpoint string
	socket   string
}

func doorOf(t *testing.T, namespace, pod string) door {
	t.Helper()
	process := processOf(t, namespace, pod, "app")
	return door{process, endpoint, fmt.Sprintf("/proc/%d/root%s", process, v1alpha1.SocketPath)}
}

// command is a program in the network of the door, with nothing of this environment.
func (d door) command(t *testing.T, home, name string, args ...string) *exec.Cmd {
	t.Helper()
	if d.process > 0 {
		name, args = "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", d.process), "--", name}, args...)
	}
	c := exec.CommandContext(t.Context(), name, args...)
	c.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "AWS_ACCESS_KEY_ID=any", "AWS_SECRET_ACCESS_KEY=any",
		"AWS_DEFAULT_REGION=eu-central-1", "AWS_MAX_ATTEMPTS=1", "AWS_PAGER=",
	}
	return c
}

// program is a client in another language, or with modules of its own: it reads calls from stdin and answers each on stdout.
type program struct {
	stdin  *json.Encoder
	stdout *json.Decoder
}

func start(t *testing.T, c *exec.Cmd) *program {
	t.Helper()
	c.Stderr = t.Output()
	stdin, inErr := c.StdinPipe()
	stdout, outErr := c.StdoutPipe()
	if err := errors.Join(inErr, outErr); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = c.Wait() })
	return &program{json.NewEncoder(stdin), json.NewDecoder(stdout)}
}

func (p *program) call(t *testing.T, operation string, request fields) (fields, *failure) {
	t.Helper()
	var answer struct {
		Response fields
		Error    *failure
	}
	if err := p.stdin.Encode(fields{"operation": operation, "request": request}); err != nil {
		t.Fatal(err)
	}
	if err := p.stdout.Decode(&answer); err != nil {
		t.Fatalf("%s: the program is gone: %v", operation, err)
	}
	return answer.Response, answer.Error
}

// newBoto starts Debian's boto3, by Debian's interpreter.
func (c *clients) newBoto(t *testing.T, d door) caller {
	t.Helper()
	return start(t, d.command(t, c.home, "/usr/bin/python3", filepath.Join(root, "test/clients/boto.py"), d.endpoint))
}

// newJavaScript starts the AWS SDK for JavaScript, which has the operations of the Encryption SDK beside its own.
func (c *clients) newJavaScript(t *testing.T, d door) caller {
	t.Helper()
	return start(t, d.command(t, c.home, "node", "--no-warnings", filepath.Join(c.home, "js/main.js"), d.socket))
}

// newAlibaba starts Alibaba's SDK, which tries once: that it tries again is tested in test/alibaba.
func (c *clients) newAlibaba(t *testing.T, d door) caller {
	t.Helper()
	return start(t, d.command(t, c.home, filepath.Join(c.home, "alibaba"), "-once", "-endpoint", strings.TrimPrefix(d.endpoint, "http://")))
}

// build makes the programs ready in c.home.
func (c *clients) build(t *testing.T) {
	t.Helper()
	if err := run(t.Context(), state, "go", "build", "-C", "test/alibaba/client", "-o", filepath.Join(c.home, "alibaba"), "."); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(c.home, "js")
	if err := os.CopyFS(folder, os.DirFS(filepath.Join(root, "test/clients/js"))); err != nil {
		t.Fatal(err)
	}
	npm := exec.CommandContext(t.Context(), "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	npm.Dir = folder
	if out, err := npm.CombinedOutput(); err != nil {
		t.Fatalf("npm ci: %v: %s", err, out)
	}
}

// goSDK is aws-sdk-go-v2 on the socket.
type goSDK struct{ *awskms.Client }

func newGoSDK(d door) goSDK { return goSDK{awsOn(d.socket)} }

// awsOn is the SDK for Go on a pod's socket.
func awsOn(socket string) *awskms.Client {
	return awsBy(&http.Client{Transport: socketTransport(socket)}, "http://datakeys")
}

// awsBy is the SDK for Go by an HTTP client, with no second try.
func awsBy(c *http.Client, endpoint string) *awskms.Client {
	return awskms.New(awskms.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String(endpoint), RetryMaxAttempts: 1, HTTPClient: c,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "any", SecretAccessKey: "any"}, nil
		}),
	})
}

func socketTransport(socket string) *http.Transport {
	return &http.Transport{DialContext: onSocket(socket)}
}

type dial = func(context.Context, string, string) (net.Conn, error)

func onSocket(path string) dial {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}

// call finds the method by its name. Members have the same names in Go and in JSON.
func (s goSDK) call(t *testing.T, operation string, request fields) (fields, *failure) {
	t.Helper()
	method := reflect.ValueOf(s.Client).MethodByName(operation)
	input := reflect.New(method.Type().In(1).Elem())
	convert(t, request, input.Interface())
	results := method.Call([]reflect.Value{reflect.ValueOf(t.Context()), input})
	if err, failed := reflect.TypeAssert[error](results[1]); failed {
		known, ok := errors.AsType[smithy.APIError](err)
		response, answered := errors.AsType[*smithyhttp.ResponseError](err)
		if !ok || !answered {
			t.Fatalf("%s: %v", operation, err)
		}
		return nil, &failure{
			Code: known.ErrorCode(), Message: known.ErrorMessage(), Class: reflect.TypeOf(known).Elem().Name(), Status: response.HTTPStatusCode(),
		}
	}
	var answer fields
	convert(t, results[0].Interface(), &answer)
	return answer, nil
}

// convert makes one of the other, whose JSON is the same.
func convert(t *testing.T, from, to any) {
	t.Helper()
	text, err := json.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		t.Fatal(err)
	}
}

// cli is the AWS CLI as Debian has it, which `make test-e2e` installs.
type cli struct {
	door
	home string
}

func (c *clients) newCLI(_ *testing.T, d door) caller { return cli{d, c.home} }

var (
	capital = regexp.MustCompile(`.[A-Z]`)
	cliSays = regexp.MustCompile(`^\s*An error occurred \((\w+)\) when calling the \w+ operation(?: \(reached max retries: 0\))?: ?(.*)$`)
)

// option is a name of the service model as an operation or an option of the CLI.
func option(name string) string {
	return strings.ToLower(capital.ReplaceAllStringFunc(name, func(two string) string { return two[:1] + "-" + two[1:] }))
}

func (c cli) call(t *testing.T, operation string, request fields) (fields, *failure) {
	t.Helper()
	args := []string{option(operation)}
	for name, value := range request {
		text, isText := value.(string)
		if !isText {
			text = string(jsonOf(t, value))
		}
		args = append(args, "--"+option(name), text)
	}
	return c.run(t, args...)
}

// run runs it. A refusal by the service has a status of its own, and is on stderr alone.
func (c cli) run(t *testing.T, args ...string) (fields, *failure) {
	t.Helper()
	stdout, stderr, err := c.output(t, args...)
	if err == nil {
		var answer fields
		if err := json.Unmarshal(stdout, &answer); err != nil {
			t.Fatalf("aws kms %q: %v", args, err)
		}
		return answer, nil
	}
	exit, _ := errors.AsType[*exec.ExitError](err)
	said := cliSays.FindStringSubmatch(strings.TrimSuffix(stderr, "\n"))
	if exit == nil || exit.ExitCode() != 254 || said == nil || len(stdout) > 0 {
		t.Fatalf("aws kms %q: got %v and %q", args, err, stderr)
	}
	return nil, &failure{Code: said[1], Message: said[2]}
}

func (c cli) output(t *testing.T, args ...string) (stdout []byte, stderr string, err error) {
	t.Helper()
	command := c.command(t, c.home, "/usr/bin/aws", append([]string{"kms", "--endpoint-url", c.endpoint}, args...)...)
	var said strings.Builder
	command.Stderr = &said
	stdout, err = command.Output()
	return stdout, said.String(), err
}

func jsonOf(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
