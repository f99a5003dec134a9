package rootkey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/transit/v2"
	"github.com/hashicorp/vault/api"

	"github.com/datakeys/datakeys/internal/envelope"
)

const schemeTransit = "transit"

const (
	transitPort = "8200"

	// noAddress is of a scheme that net/http refuses before it does anything.
	noAddress = "none://none"

	maxTokenFileSize = 16 << 10

	// serviceAccountToken is where the kubelet puts the token of the pod's service account.
	serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
)

var (
	transitSegment = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	transitHost    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	// transitAnswer is a ciphertext: the prefix says nothing about the server, OpenBao writes it too.
	transitAnswer = regexp.MustCompile(`^vault:(v[1-9][0-9]{0,8}):[A-Za-z0-9+/]+={0,2}$`)

	// transitKeyTypes encrypt with authentication and under one secret. A key of RSA does neither: whoever knows its
	// public half could put a sealing key of his own in place of ours.
	transitKeyTypes = []string{"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}
)

// transitProvider reaches a key of the transit engine of Vault or OpenBao.
type transitProvider struct {
	address   string
	mount     string
	key       string
	namespace string

	caFile     string
	serverName string

	tokenFile string // of a Vault token, or of a service account's where role is set; empty for VAULT_TOKEN
	role      string // of the Kubernetes auth method; empty for none
	roleMount string
}

// Parameters of a transit URI.
const (
	transitNamespace  = "namespace"
	transitTLS        = "tls"
	transitCAFile     = "ca-file"
	transitServerName = "tls-server-name"
	transitTokenFile  = "token-file"
	transitRole       = "kubernetes-role"
	transitRoleMount  = "kubernetes-mount"
)

func newTransitProvider(u *url.URL) (string, wrappingProvider, error) {
	parameters, err := wrappingParameters(u, transitNamespace, transitTLS, transitCAFile, transitServerName, transitTokenFile, transitRole, transitRoleMount)
	if err != nil {
		return "", nil, err
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = transitPort
	}
	if net.ParseIP(host) == nil && !transitHost.MatchString(host) {
		return "", nil, errors.New("must name the server: write transit://HOST:PORT/MOUNT/KEY")
	}
	segments := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if len(segments) < 2 || !allSegments(segments) {
		return "", nil, errors.New("must name the engine's mount and its key in letters, digits and _.-: write transit://HOST:PORT/MOUNT/KEY")
	}
	if err := checkTransitParameters(parameters, host); err != nil {
		return "", nil, err
	}
	p := &transitProvider{
		address:    "https://" + net.JoinHostPort(host, port),
		mount:      path.Join(segments[:len(segments)-1]...),
		key:        segments[len(segments)-1],
		namespace:  parameters[transitNamespace],
		caFile:     parameters[transitCAFile],
		serverName: parameters[transitServerName],
		tokenFile:  parameters[transitTokenFile],
		role:       parameters[transitRole],
		roleMount:  parameters[transitRoleMount],
	}
	if parameters[transitTLS] != "" {
		p.address = "http://" + net.JoinHostPort(host, port)
	}
	if p.role != "" {
		p.roleMount = cmp.Or(p.roleMount, "kubernetes")
		p.tokenFile = cmp.Or(p.tokenFile, serviceAccountToken)
	}
	id := schemeTransit + "://" + net.JoinHostPort(host, port) + "/" + path.Join(p.mount, p.key)
	if p.namespace != "" {
		id += "?" + transitNamespace + "=" + p.namespace
	}
	if len(id) > maxRootIDSize {
		return "", nil, fmt.Errorf("parameter %q is too long: the ID of a root key, which it is a part of, has at most %d bytes", transitNamespace, maxRootIDSize)
	}
	return id, p, nil
}

// checkTransitParameters checks those that have a form.
func checkTransitParameters(parameters map[string]string, host string) error {
	for _, name := range []string{transitNamespace, transitRoleMount, transitRole} {
		if value, ok := parameters[name]; ok && !allSegments(strings.Split(value, "/")) {
			return fmt.Errorf("parameter %q must be words of letters, digits and _.- with / between them", name)
		}
	}
	if value, ok := parameters[transitServerName]; ok && !transitHost.MatchString(value) {
		return fmt.Errorf("parameter %q must be a DNS name", transitServerName)
	}
	if value, ok := parameters[transitTLS]; ok && (value != "off" || !loopback(host)) {
		return fmt.Errorf("parameter %q can only be off, and only for an agent at a loopback IP address: take it out", transitTLS)
	}
	if parameters[transitRoleMount] != "" && parameters[transitRole] == "" {
		return fmt.Errorf("parameter %q needs %q", transitRoleMount, transitRole)
	}
	return nil
}

func allSegments(segments []string) bool {
	return !slices.ContainsFunc(segments, func(s string) bool { return !transitSegment.MatchString(s) })
}

// authenticates is false: the wrapper drops what wrapping.WithAad gives it.
func (p *transitProvider) authenticates() bool { return false }

// connect implements wrappingProvider.
func (p *transitProvider) connect(ctx context.Context, stored *wrapping.BlobInfo) (wrapper, error) {
	w, client, err := p.client(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.login(ctx, client); err != nil {
		return nil, err
	}
	if stored != nil {
		return w, nil
	}
	return w, p.checkKey(ctx, client)
}

// client returns the wrapper and the API client inside it. SetConfig makes that client out of the environment, and tries
// it at once without a bound on time or answer. So it gets an address that nothing can be sent to; what it makes is bound
// afterwards, and pointed to where the URI says.
func (p *transitProvider) client(ctx context.Context) (*transit.Wrapper, *api.Client, error) {
	ambient := api.DefaultConfig()
	if ambient.Error != nil {
		return nil, nil, &wrappingError{problem: "the environment configures Vault's client badly", remedy: "take the variables VAULT_* out, but VAULT_TOKEN"}
	}
	if ambient.AgentAddress != "" {
		return nil, nil, &wrappingError{problem: "the environment has VAULT_AGENT_ADDR, which would lead elsewhere than the URI", remedy: "take it out"}
	}
	w := transit.NewWrapper()
	_, err := w.SetConfig(ctx,
		wrapping.WithDisallowEnvVars(true),
		transit.WithAddress(noAddress),
		transit.WithMountPath(p.mount),
		transit.WithKeyName(p.key),
		transit.WithDisableRenewal("true"))
	inner, ok := w.GetClient().(*transit.TransitClient)
	if !ok {
		return nil, nil, fmt.Errorf("making the client: %w", err)
	}
	client := inner.GetApiClient()
	t, ok := client.CloneConfig().HttpClient.Transport.(*http.Transport)
	if !ok {
		return nil, nil, errors.New("making the client: its transport is of another type")
	}
	if err := boundTransport(t, p.caFile, p.serverName); err != nil {
		return nil, nil, err
	}
	if err := client.SetAddress(p.address); err != nil {
		return nil, nil, err
	}
	client.ClearNamespace() // that of VAULT_NAMESPACE
	if p.namespace != "" {
		client.SetNamespace(p.namespace)
	}
	client.SetClientTimeout(wrappingTimeout)
	client.SetMaxRetries(1)
	client.SetMinRetryWait(100 * time.Millisecond)
	client.SetMaxRetryWait(time.Second)
	return w, client, nil
}

// login gives client its token. The client has that of VAULT_TOKEN by itself.
func (p *transitProvider) login(ctx context.Context, client *api.Client) error {
	token := client.Token()
	if p.tokenFile != "" {
		b, err := readSmallFile(p.tokenFile, maxTokenFileSize)
		if err != nil {
			return err
		}
		token = string(b)
	}
	client.SetToken(strings.TrimSpace(token))
	if client.Token() == "" {
		return &wrappingError{
			problem: "there is no token for the service",
			remedy:  "set VAULT_TOKEN, or the parameter token-file or kubernetes-role",
		}
	}
	if p.role == "" {
		return nil
	}
	jwt := client.Token()
	client.ClearToken()
	answer, err := client.Logical().WriteWithContext(ctx, path.Join("auth", p.roleMount, "login"), map[string]any{"role": p.role, "jwt": jwt})
	if refused, ok := errors.AsType[*api.ResponseError](err); ok && refused.StatusCode < http.StatusInternalServerError {
		return &wrappingError{
			problem: fmt.Sprintf("the service lets nobody in by role %s of auth/%s (HTTP status %d)", p.role, p.roleMount, refused.StatusCode),
			remedy:  "bind the role to the manager's service account and namespace",
		}
	}
	if err != nil {
		return err
	}
	if answer == nil || answer.Auth == nil || answer.Auth.ClientToken == "" {
		return errWrappingNonsense
	}
	client.SetToken(answer.Auth.ClientToken)
	return nil
}

// checkKey refuses a key that a sealing key must not be wrapped under.
func (p *transitProvider) checkKey(ctx context.Context, client *api.Client) error {
	answer, err := client.Logical().ReadWithContext(ctx, path.Join(p.mount, "keys", p.key))
	if err != nil {
		return err
	}
	if answer == nil {
		return p.noKey()
	}
	kind, isText := answer.Data["type"].(string)
	if !isText || len(kind) > 64 {
		return errWrappingNonsense
	}
	derived, isBool := answer.Data["derived"].(bool)
	if !slices.Contains(transitKeyTypes, kind) || !isBool || derived {
		return &wrappingError{
			problem: fmt.Sprintf("the key is of type %q, derived %t", kind, derived),
			remedy:  "make a root key of type " + transitKeyTypes[1] + " that is not derived",
		}
	}
	return nil
}

func (p *transitProvider) noKey() error {
	return &wrappingError{
		problem: fmt.Sprintf("the service shows no key %s at mount %s", p.key, p.mount),
		remedy:  "make or restore it, or name another by the URI",
	}
}

// check implements wrappingProvider.
func (p *transitProvider) check(b *wrapping.BlobInfo) error {
	match := transitAnswer.FindSubmatch(b.GetCiphertext())
	if len(match) == 0 || string(match[1]) != b.GetKeyInfo().GetKeyId() || len(b.GetKeyInfo().GetWrappedKey()) > 0 || len(b.GetIv()) > 0 {
		return envelope.ErrBroken
	}
	return nil
}

// explain goes by the status and by phrases of the transit engine, which OpenBao has in the same words. The text itself
// is not shown.
func (p *transitProvider) explain(err error) error {
	refused, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		return cmp.Or(explainNetwork(err), errWrappingNonsense)
	}
	says := func(phrase string) bool {
		return slices.ContainsFunc(refused.Errors, func(text string) bool { return strings.Contains(text, phrase) })
	}
	status := fmt.Sprintf(" (HTTP status %d)", refused.StatusCode)
	switch {
	case refused.StatusCode == http.StatusBadRequest && says("message authentication failed"):
		return fmt.Errorf("%w: the service's key does not open it, which was made anew or is another of the same name", envelope.ErrBroken)
	case refused.StatusCode == http.StatusBadRequest && says("disallowed by policy"):
		return &wrappingError{
			problem: "the key's version that made it is below the key's min_decryption_version" + status,
			remedy:  "lower that until the sealing keys are wrapped anew",
		}
	case refused.StatusCode == http.StatusBadRequest && says("version is too new"):
		return &wrappingError{
			problem: "the service's key lacks the version that made it" + status,
			remedy:  "restore the key from a later backup",
		}
	case refused.StatusCode == http.StatusBadRequest && says("encryption key not found"):
		return p.noKey()
	case refused.StatusCode == http.StatusBadRequest && says("invalid ciphertext"):
		return envelope.ErrBroken
	case refused.StatusCode == http.StatusForbidden:
		return &wrappingError{
			problem: "the service refuses the token" + status,
			remedy: fmt.Sprintf("give a live token whose policy has update on %[1]s/encrypt/%[2]s and %[1]s/decrypt/%[2]s and read on %[1]s/keys/%[2]s",
				p.mount, p.key),
		}
	case refused.StatusCode == http.StatusNotFound:
		return &wrappingError{
			problem: fmt.Sprintf("the service has no transit engine at mount %s", p.mount) + status,
			remedy:  "mount it, or name another by the URI",
		}
	case refused.StatusCode == http.StatusServiceUnavailable:
		return &wrappingError{problem: "the service is sealed or in maintenance" + status, remedy: "unseal it"}
	default:
		return &wrappingError{problem: "the service failed" + status, remedy: "see its log"}
	}
}
