package rootkey

import (
	"cmp"
	"context"
	"crypto/aes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go/aws/awserr"           //nolint:staticcheck // the wrapper hands out a client of that library
	awsclient "github.com/aws/aws-sdk-go/aws/client" //nolint:staticcheck // as above
	"github.com/aws/aws-sdk-go/aws/request"          //nolint:staticcheck // as above
	"github.com/aws/aws-sdk-go/service/kms"          //nolint:staticcheck // as above
	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"github.com/hashicorp/go-kms-wrapping/wrappers/awskms/v2"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

const schemeAWSKMS = "awskms"

const keyAliasPrefix = "alias/"

var (
	awsRegion = regexp.MustCompile(`^[a-z0-9]{2,16}(-[a-z0-9]{1,16}){0,5}$`) // one of Datakeys is without a hyphen
	awsKeyID  = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	awsAlias  = regexp.MustCompile(`^alias/[A-Za-z0-9/_-]{1,250}$`)
	// awsARN has the partition, the region, the account and the key or alias.
	awsARN = regexp.MustCompile(`^arn:([a-z0-9-]{1,32}):kms:([a-z0-9-]{1,64}):([A-Za-z0-9-]{1,64}):(key/[A-Za-z0-9-]{1,64}|alias/[A-Za-z0-9/_-]{1,250})$`)

	// serviceErrorCode is what an error of a service may be called to be shown.
	serviceErrorCode = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]{0,63}$`)
)

// awsProvider reaches a symmetric key of AWS KMS, or of what speaks its protocol.
type awsProvider struct {
	region   string
	key      string // key ID, key ARN, alias or alias ARN
	endpoint string // empty for the region's own
	caFile   string
}

func newAWSProvider(u *url.URL) (string, wrappingProvider, error) {
	const endpoint, caFile = "endpoint", "ca-file"
	parameters, err := wrappingParameters(u, endpoint, caFile)
	if err != nil {
		return "", nil, err
	}
	p := &awsProvider{
		region:   u.Host,
		key:      strings.TrimPrefix(u.Path, "/"),
		endpoint: parameters[endpoint],
		caFile:   parameters[caFile],
	}
	if !awsRegion.MatchString(p.region) {
		return "", nil, errors.New("must name the region: write awskms://eu-west-1/KEY-ID or the like")
	}
	if arn := awsARN.FindStringSubmatch(p.key); len(arn) > 0 {
		if arn[2] != p.region {
			return "", nil, fmt.Errorf("names the region %s, and a key of %s: write one region", p.region, arn[2])
		}
	} else if !awsKeyID.MatchString(p.key) && !awsAlias.MatchString(p.key) {
		return "", nil, errors.New("must name the key by its ID, its ARN, its alias as alias/NAME or that one's ARN")
	}
	if p.endpoint != "" {
		e, err := url.Parse(p.endpoint)
		if err != nil || e.User != nil || e.Hostname() == "" || e.RawQuery != "" || e.Fragment != "" || (e.Path != "" && e.Path != "/") {
			return "", nil, fmt.Errorf("parameter %q must be https://HOST:PORT", endpoint)
		}
		if e.Scheme != "https" && (e.Scheme != "http" || !loopback(e.Hostname())) {
			return "", nil, fmt.Errorf("parameter %q must begin with https://, or be at a loopback IP address", endpoint)
		}
	}
	return schemeAWSKMS + "://" + p.region + "/" + p.key, p, nil
}

// authenticates is true: the wrapper encrypts under a data key of its own by AES-GCM, with the additional data.
func (p *awsProvider) authenticates() bool { return true }

// connect implements wrappingProvider. What the environment says of the region, the endpoint and the key is off;
// credentials come by AWS's default chain. Getting them can take a call that ctx does not end.
func (p *awsProvider) connect(ctx context.Context, stored *wrapping.BlobInfo) (wrapper, error) {
	w := awskms.NewWrapper()
	_, err := w.SetConfig(ctx,
		wrapping.WithKeyId(p.key),
		awskms.WithDisallowEnvVars(true),
		awskms.WithKeyNotRequired(true), // saves a DescribeKey, which nothing could bound yet
		awskms.WithRegion(p.region),
		awskms.WithEndpoint(p.endpoint))
	if err != nil {
		return nil, err
	}
	client, ok := w.Client().(*kms.KMS)
	if !ok {
		return nil, errors.New("making the client: it is of another type")
	}
	t := &http.Transport{TLSHandshakeTimeout: dialTimeout}
	if err := boundTransport(t, p.caFile, ""); err != nil {
		return nil, err
	}
	client.Config.HTTPClient = &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	client.Retryer = awsclient.DefaultRetryer{NumMaxRetries: 1}
	client.Handlers.Validate.PushFront(func(r *request.Request) {
		r.SetContext(ctx) // the wrapper takes none along
		if in, ok := r.Params.(*kms.DecryptInput); ok && stored != nil {
			// Otherwise the service would open by whatever key the ciphertext names.
			in.KeyId = new(stored.GetKeyInfo().GetKeyId())
		}
	})
	if stored != nil {
		stored.KeyInfo.Mechanism = awskms.AwsKmsEnvelopeAesGcmEncrypt
	}
	return w, nil
}

// check implements wrappingProvider. An alias may have been pointed to another key since; then what the old one wrapped
// still opens by the old one.
func (p *awsProvider) check(b *wrapping.BlobInfo) error {
	if !isWrapperEnvelope(b) {
		return envelope.ErrBroken
	}
	arn := awsARN.FindStringSubmatch(b.GetKeyInfo().GetKeyId())
	if len(arn) == 0 || !strings.HasPrefix(arn[4], "key/") {
		return envelope.ErrBroken
	}
	configured := awsARN.FindStringSubmatch(p.key)
	same := arn[2] == p.region
	switch {
	case len(configured) > 0 && strings.HasPrefix(configured[4], keyAliasPrefix):
		same = same && arn[1] == configured[1] && arn[3] == configured[3]
	case len(configured) > 0:
		same = b.GetKeyInfo().GetKeyId() == p.key
	case strings.HasPrefix(p.key, keyAliasPrefix):
	default:
		same = same && arn[4] == "key/"+p.key
	}
	if !same {
		return fmt.Errorf("%w, %s", seal.ErrOtherRootKey, b.GetKeyInfo().GetKeyId())
	}
	return nil
}

// isWrapperEnvelope reports whether b has what the wrappers' own envelope needs: the ciphertext holds at least its tag of
// 16 bytes, and a nonce of another length would make AES-GCM panic.
func isWrapperEnvelope(b *wrapping.BlobInfo) bool {
	return len(b.GetKeyInfo().GetWrappedKey()) > 0 && len(b.GetIv()) == 12 && len(b.GetCiphertext()) > 16
}

// explain implements wrappingProvider.
func (p *awsProvider) explain(err error) error {
	failed, ok := errors.AsType[awserr.Error](err)
	if !ok {
		return explainWrapperEnvelope(err)
	}
	code := failed.Code()
	switch code {
	case kms.ErrCodeIncorrectKeyException:
		return seal.ErrOtherRootKey
	case kms.ErrCodeInvalidCiphertextException:
		return envelope.ErrBroken
	case request.ErrCodeSerialization, request.ErrCodeRead:
		return cmp.Or(explainNetwork(innermost(failed)), errWrappingNonsense)
	case request.ErrCodeRequestError, request.ErrCodeResponseTimeout:
		if err := explainNetwork(innermost(failed)); err != nil {
			return err
		}
		return &wrappingError{problem: "the service could not be asked", remedy: "see what answers at its address"}
	}
	return &wrappingError{problem: "the service answered " + shownCode(code), remedy: awsRemedy(code)}
}

func awsRemedy(code string) string {
	switch code {
	case kms.ErrCodeNotFoundException:
		return "name a key that exists in the URI's region"
	case kms.ErrCodeDisabledException:
		return "enable the key"
	case kms.ErrCodeInvalidStateException:
		return "cancel the key's deletion, or wait until it is available"
	case kms.ErrCodeInvalidKeyUsageException:
		return "name a symmetric key for encryption and decryption"
	case "AccessDeniedException":
		return "allow kms:Encrypt and kms:Decrypt on the key to the manager's role"
	case "NoCredentialProviders", "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException",
		"MissingAuthenticationTokenException", "InvalidClientTokenId", "WebIdentityErr":
		return "give the manager credentials by AWS's default chain, such as a role for its service account"
	default:
		return "see that the service is well; the manager tries again"
	}
}

// innermost follows the errors of AWS's library, which do not unwrap.
func innermost(err awserr.Error) error {
	for {
		inner := err.OrigErr()
		next, ok := inner.(awserr.Error) //nolint:errorlint // each is asked in turn
		switch {
		case inner == nil:
			return err
		case !ok:
			return inner
		}
		err = next
	}
}

// shownCode is a service's name for an error, where it has the form of one.
func shownCode(code string) string {
	if !serviceErrorCode.MatchString(code) {
		return "an error without a name"
	}
	return code
}

// explainWrapperEnvelope says what a wrapper with an envelope of its own met after the service's answer.
func explainWrapperEnvelope(err error) error {
	if _, ok := errors.AsType[aes.KeySizeError](err); ok {
		return errWrappingNonsense
	}
	if strings.HasSuffix(err.Error(), "cipher: message authentication failed") {
		return envelope.ErrBroken
	}
	return cmp.Or(explainNetwork(err), errWrappingNonsense)
}
