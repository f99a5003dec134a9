package rootkey

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials/providers"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

const schemeAlicloudKMS = "alicloudkms"

const alicloudCredentials = "give the manager credentials by ALICLOUD_ACCESS_KEY and ALICLOUD_SECRET_KEY, or by the RAM role of its instance"

var (
	alicloudRegion = regexp.MustCompile(`^[a-z]{2,12}(-[a-z0-9]{1,16}){1,5}$`)
	alicloudKey    = regexp.MustCompile(`^(alias/)?[A-Za-z0-9][A-Za-z0-9/_-]{0,254}$`)
	alicloudDomain = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?$`)
)

// alicloudProvider reaches a symmetric key of Alibaba Cloud KMS.
//
// It does what the wrapper wrappers/alicloudkms of go-kms-wrapping does, by the same library and into the same BlobInfo,
// but not by that wrapper: it keeps its client to itself, so that nothing could bound how long an answer is or end a
// call, name an authority to trust, or see which key has opened what is stored.
type alicloudProvider struct {
	region string
	key    string // key ID or alias
	domain string // host, or host and port
	caFile string
}

func newAlicloudProvider(u *url.URL) (string, wrappingProvider, error) {
	const domain, caFile = "domain", "ca-file"
	parameters, err := wrappingParameters(u, domain, caFile)
	if err != nil {
		return "", nil, err
	}
	p := &alicloudProvider{
		region: u.Host,
		key:    strings.TrimPrefix(u.Path, "/"),
		domain: parameters[domain],
		caFile: parameters[caFile],
	}
	if !alicloudRegion.MatchString(p.region) {
		return "", nil, errors.New("must name the region: write alicloudkms://eu-central-1/KEY-ID or the like")
	}
	if !alicloudKey.MatchString(p.key) {
		return "", nil, errors.New("must name the key by its ID or as alias/NAME")
	}
	if p.domain == "" {
		// Named here, because the library would ask another service for it.
		p.domain = "kms." + p.region + ".aliyuncs.com"
	}
	if !alicloudDomain.MatchString(p.domain) {
		return "", nil, fmt.Errorf("parameter %q must be HOST or HOST:PORT", domain)
	}
	// That is this library's one switch for debugging, and it leaves no other way to learn what it was set to.
	if slices.Contains(strings.Split(os.Getenv("DEBUG"), ","), "sdk") { //nolint:forbidigo // not to be configured by it, but to refuse it
		return "", nil, errors.New("cannot be used with DEBUG=sdk in the environment, by which Alibaba's library prints what it encrypts: take it out")
	}
	return schemeAlicloudKMS + "://" + p.region + "/" + p.key, p, nil
}

// authenticates is true: go-kms-wrapping encrypts under a data key of its own by AES-GCM, with the additional data.
func (p *alicloudProvider) authenticates() bool { return true }

// connect implements wrappingProvider. Credentials come from the environment, and otherwise from the metadata service of
// the instance, as the wrapper gets them. Those of a role expire: another reason for a client per call.
func (p *alicloudProvider) connect(ctx context.Context, _ *wrapping.BlobInfo) (wrapper, error) {
	credential, err := providers.NewChainProvider([]providers.Provider{
		providers.NewEnvCredentialProvider(),
		providers.NewInstanceMetadataProvider(),
	}).Retrieve()
	if err != nil {
		return nil, &wrappingError{problem: "there are no credentials for the service", remedy: alicloudCredentials}
	}
	t := &http.Transport{TLSHandshakeTimeout: dialTimeout}
	if err := boundTransport(t, p.caFile, ""); err != nil {
		return nil, err
	}
	config := sdk.NewConfig()
	config.Scheme = "https"
	config.Timeout = wrappingTimeout
	config.Transport = &alicloudTransport{ctx: ctx, base: t}
	client, err := kms.NewClientWithOptions(p.region, config, credential)
	if err != nil {
		return nil, err
	}
	// By itself the library reads proxies from the environment, not as net/http does, and sends the service their password.
	client.SetHttpsProxy(noAddress)
	client.SetNoProxy(noAddress)
	return &alicloudWrapper{provider: p, client: client}, nil
}

// alicloudTransport gives the requests of one call that call's context, which the library takes from nobody, and follows
// no redirection.
type alicloudTransport struct {
	ctx  context.Context //nolint:containedctx // of one call, as is the transport
	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *alicloudTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := t.base.RoundTrip(r.WithContext(t.ctx))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode >= http.StatusMultipleChoices && answer.StatusCode < http.StatusBadRequest {
		_ = answer.Body.Close()
		return nil, errWrappingNonsense
	}
	return answer, nil
}

// alicloudWrapper is the part of wrapping.Wrapper that is used.
type alicloudWrapper struct {
	provider *alicloudProvider
	client   *kms.Client
}

// Encrypt implements wrapper.
func (w *alicloudWrapper) Encrypt(_ context.Context, plaintext []byte, options ...wrapping.Option) (*wrapping.BlobInfo, error) {
	sealed, err := wrapping.EnvelopeEncrypt(plaintext, options...)
	if err != nil {
		return nil, err
	}
	defer clear(sealed.GetKey())
	request := kms.CreateEncryptRequest()
	request.Domain = w.provider.domain
	request.KeyId = w.provider.key
	request.Plaintext = base64.StdEncoding.EncodeToString(sealed.GetKey())
	answer, err := w.client.Encrypt(request)
	if err != nil {
		return nil, err
	}
	return &wrapping.BlobInfo{
		Ciphertext: sealed.GetCiphertext(),
		Iv:         sealed.GetIv(),
		KeyInfo:    &wrapping.KeyInfo{KeyId: answer.KeyId, WrappedKey: []byte(answer.CiphertextBlob)},
	}, nil
}

// Decrypt implements wrapper.
func (w *alicloudWrapper) Decrypt(_ context.Context, b *wrapping.BlobInfo, options ...wrapping.Option) ([]byte, error) {
	request := kms.CreateDecryptRequest()
	request.Domain = w.provider.domain
	request.CiphertextBlob = string(b.GetKeyInfo().GetWrappedKey())
	answer, err := w.client.Decrypt(request)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(answer.Plaintext)
	if err != nil {
		return nil, errWrappingNonsense
	}
	defer clear(key)
	// The request cannot say which key shall open: the service goes by what the ciphertext names.
	if len(key) > 0 && answer.KeyId != b.GetKeyInfo().GetKeyId() {
		return nil, seal.ErrOtherRootKey
	}
	return wrapping.EnvelopeDecrypt(&wrapping.EnvelopeInfo{Key: key, Iv: b.GetIv(), Ciphertext: b.GetCiphertext()}, options...)
}

// check implements wrappingProvider.
func (p *alicloudProvider) check(b *wrapping.BlobInfo) error {
	if !isWrapperEnvelope(b) {
		return envelope.ErrBroken
	}
	// The wrapper keeps the service's text, which stands for base64.
	if _, err := base64.StdEncoding.Strict().DecodeString(string(b.GetKeyInfo().GetWrappedKey())); err != nil {
		return envelope.ErrBroken
	}
	if strings.HasPrefix(p.key, keyAliasPrefix) || b.GetKeyInfo().GetKeyId() == p.key {
		return nil
	}
	return fmt.Errorf("%w, %q", seal.ErrOtherRootKey, b.GetKeyInfo().GetKeyId())
}

// explain implements wrappingProvider. An error of the library quotes the request, in whose URL the data key lies: only
// codes are shown.
func (p *alicloudProvider) explain(err error) error {
	if errors.Is(err, seal.ErrOtherRootKey) {
		return seal.ErrOtherRootKey
	}
	failed, ok := errors.AsType[*sdkerrors.ServerError](err)
	if !ok {
		return explainWrapperEnvelope(err)
	}
	code := failed.ErrorCode()
	if failed.HttpStatus() < http.StatusBadRequest {
		return errWrappingNonsense
	}
	remedy := "see that the service is well; the manager tries again"
	switch code {
	case "InvalidCiphertext", "InvalidParameter":
		return envelope.ErrBroken
	case "Forbidden.KeyNotFound", "Forbidden.AliasNotFound", "Forbidden.KeyVersionNotFound":
		remedy = "name a key that exists in the URI's region, or restore it"
	case "Rejected.Disabled":
		remedy = "enable the key"
	case "Rejected.PendingDeletion":
		remedy = "cancel the key's deletion"
	case "Forbidden.NoPermission":
		remedy = "allow kms:Encrypt and kms:Decrypt on the key to the manager's RAM user or role"
	case "Forbidden.AccessKey", "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive", "SignatureDoesNotMatch",
		"IncompleteSignature", "InvalidSecurityToken.Expired", "InvalidSecurityToken.Malformed":
		remedy = alicloudCredentials
	}
	return &wrappingError{problem: fmt.Sprintf("the service answered %s (HTTP status %d)", shownCode(code), failed.HttpStatus()), remedy: remedy}
}
