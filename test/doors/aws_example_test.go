package doors_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

func newClient(socket string) *kms.Client {
	return kms.New(kms.Options{
		Region:       "none",
		BaseEndpoint: aws.String("http://datakeys"),
		Credentials:  aws.AnonymousCredentials{},
		HTTPClient: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		}},
	})
}

// TestTheGoOfTheAWSPageIsWhatIsTested: the tests of this package ask with the client of the page.
func TestTheGoOfTheAWSPageIsWhatIsTested(t *testing.T) {
	page, err := os.ReadFile("../../docs/aws-kms.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("aws_example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, program, found := strings.Cut(string(page), "```go\n")
	program, _, closed := strings.Cut(program, "```\n")
	if !found || !closed || !strings.Contains(string(source), program) {
		t.Errorf("aws_example_test.go does not hold, as it is,\n%s", program)
	}
}
