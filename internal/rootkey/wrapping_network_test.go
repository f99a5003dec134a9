package rootkey

import (
	"net/url"
	"os"
	"strings"
	"testing"
)

func TestExplainNetworkKnowsATimeout(t *testing.T) {
	err := explainNetwork(&url.Error{Op: "Get", URL: "https://kms/?Plaintext=hidden", Err: os.ErrDeadlineExceeded})
	if err == nil || !strings.Contains(err.Error(), "in time") || strings.Contains(err.Error(), "hidden") {
		t.Errorf("%v, want the word that no answer came in time", err)
	}
}
