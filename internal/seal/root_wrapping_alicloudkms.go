package seal

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/alicloudkms/v2"

	"github.com/datakeys/datakeys/internal/envelope"
)

const schemeAlicloudKMS = "alicloudkms"

var (
	alicloudRegion = regexp.MustCompile(`^[a-z]{2,12}(-[a-z0-9]{1,16}){1,5}$`)
	alicloudKey    = regexp.MustCompile(`^(alias/)?[A-Za-z0-9][A-Za-z0-9/_-]{0,254}$`)
	alicloudDomain = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?$`)
)

// alicloudProvider reaches a symmetric key of Alibaba Cloud KMS. Its library is the least bounded of the three: the
// wrapper hides the client, so that a call that ctx ended goes on in the background until the library's own limits, 5
// seconds for a connection and 10 for an answer, and the length of an answer is bounded by those alone. Which authorities
// it trusts is the system's business, and so SSL_CERT_FILE's.
type alicloudProvider struct {
	region string
	key    string // key ID or alias
	domain string // host, or host and port
}

func newAlicloudProvider(u *url.URL) (string, wrappingProvider, error) {
	const domain = "domain"
	parameters, err := wrappingParameters(u, domain)
	if err != nil {
		return "", nil, err
	}
	p := &alicloudProvider{region: u.Host, key: strings.TrimPrefix(u.Path, "/"), domain: parameters[domain]}
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
	return schemeAlicloudKMS + "://" + p.region + "/" + p.key, p, nil
}

// authenticates is true: the wrapper encrypts under a data key of its own by AES-GCM, with the additional data.
func (p *alicloudProvider) authenticates() bool { return true }

// connect implements wrappingProvider. It asks the service for the key, and nothing ends that but its own limits. The
// wrapper gets credentials once, and those of a role expire: another reason for a wrapper per call.
func (p *alicloudProvider) connect(ctx context.Context, _ *wrapping.BlobInfo) (wrapping.Wrapper, error) {
	w := alicloudkms.NewWrapper()
	_, err := w.SetConfig(ctx,
		wrapping.WithDisallowEnvVars(true),
		wrapping.WithKeyId(p.key),
		alicloudkms.WithRegion(p.region),
		alicloudkms.WithDomain(p.domain))
	return w, err
}

// check implements wrappingProvider.
func (p *alicloudProvider) check(b *wrapping.BlobInfo) error {
	if !isWrapperEnvelope(b) {
		return envelope.ErrBroken
	}
	// The wrapper keeps the service's text, which stands for base64.
	if _, err := base64.StdEncoding.Strict().DecodeString(string(b.KeyInfo.WrappedKey)); err != nil {
		return envelope.ErrBroken
	}
	if strings.HasPrefix(p.key, keyAliasPrefix) || b.KeyInfo.KeyId == p.key {
		return nil
	}
	return fmt.Errorf("%w, %q", ErrOtherRootKey, b.KeyInfo.KeyId)
}

// explain implements wrappingProvider. An error of the library quotes the request, in whose URL the data key lies: only
// codes are shown.
func (p *alicloudProvider) explain(err error) error {
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
		remedy = "allow kms:DescribeKey, kms:Encrypt and kms:Decrypt on the key to the manager's RAM user or role"
	case "Forbidden.AccessKey", "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive", "SignatureDoesNotMatch",
		"IncompleteSignature", "InvalidSecurityToken.Expired", "InvalidSecurityToken.Malformed":
		remedy = "give the manager credentials by ALICLOUD_ACCESS_KEY and ALICLOUD_SECRET_KEY, or by the instance's RAM role"
	}
	return &wrappingError{problem: fmt.Sprintf("the service answered %s (HTTP status %d)", shownCode(code), failed.HttpStatus()), remedy: remedy}
}
