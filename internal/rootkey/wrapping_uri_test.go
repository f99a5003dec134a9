package rootkey_test

import (
	"strings"
	"testing"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/rootkey"
)

const (
	arnOne = "arn:aws:kms:eu-west-1:111122223333:key/" + keyOne
	// arnElsewhere is of another installation of Datakeys, whose name stands where the region does.
	arnElsewhere = "arn:datakeys:kms:0123456789ab:team-a:key/" + keyOne
)

func TestWrappingURIs(t *testing.T) {
	for name, test := range map[string]struct{ uri, id string }{
		"transit":                      {"transit://Vault.example.com/transit/root", "transit://vault.example.com:8200/transit/root"},
		"transit at a port":            {"transit://10.0.0.1:443/transit/root", "transit://10.0.0.1:443/transit/root"},
		"transit by IPv6":              {"transit://[fd00::1]:8200/transit/root", "transit://[fd00::1]:8200/transit/root"},
		"transit at a long mount":      {"transit://vault/team/a/transit/root?ca-file=/etc/ca.pem", "transit://vault:8200/team/a/transit/root"},
		"transit in a namespace":       {"transit://vault/transit/root?namespace=team/a", "transit://vault:8200/transit/root?namespace=team/a"},
		"transit by an agent":          {"transit://127.0.0.1:8100/transit/root?tls=off", "transit://127.0.0.1:8100/transit/root"},
		"transit by a token file":      {"transit://vault/transit/root?token-file=/run/token&tls-server-name=v.example.com", "transit://vault:8200/transit/root"},
		"transit by a service account": {"transit://vault/transit/root?kubernetes-role=datakeys&kubernetes-mount=k8s/a", "transit://vault:8200/transit/root"},
		"AWS by ID":                    {"awskms://eu-west-1/" + keyOne, "awskms://eu-west-1/" + keyOne},
		"AWS by ARN":                   {"awskms://eu-west-1/" + arnOne, "awskms://eu-west-1/" + arnOne},
		"AWS by alias":                 {"awskms://us-gov-west-1/alias/data/keys", "awskms://us-gov-west-1/alias/data/keys"},
		"AWS of many regions":          {"awskms://eu-west-1/mrk-1234567890abcdef1234567890abcdef", "awskms://eu-west-1/mrk-1234567890abcdef1234567890abcdef"},
		"AWS at an endpoint":           {"awskms://eu-west-1/" + keyOne + "?endpoint=https://kms.example.com:8443&ca-file=/etc/ca.pem", "awskms://eu-west-1/" + keyOne},
		"AWS at a loopback endpoint":   {"awskms://eu-west-1/" + keyOne + "?endpoint=http://127.0.0.1:4566", "awskms://eu-west-1/" + keyOne},
		"a MasterKey elsewhere":        {"awskms://0123456789ab/" + arnElsewhere + "?endpoint=http://127.0.0.1:8200", "awskms://0123456789ab/" + arnElsewhere},
		"by its alias":                 {"awskms://0123456789ab/alias/root?endpoint=http://127.0.0.1:8200", "awskms://0123456789ab/alias/root"},
		"Alibaba by ID":                {"alicloudkms://cn-hangzhou/key-hzz62f1cb66fa42qo", "alicloudkms://cn-hangzhou/key-hzz62f1cb66fa42qo"},
		"Alibaba by alias":             {"alicloudkms://cn-hangzhou/alias/root?domain=kms-vpc.cn-hangzhou.aliyuncs.com", "alicloudkms://cn-hangzhou/alias/root"},
	} {
		t.Run(name, func(t *testing.T) {
			if refused, err := rootkey.Open(t.Context(), test.uri, logr.Discard()); err != nil {
				if !strings.Contains(err.Error(), "fips140=only") {
					t.Error(err)
				}
			} else if refused.ID() != test.id {
				t.Errorf("ID %s, want %s", refused.ID(), test.id)
			}
		})
	}
}

func TestWrappingURIsThatAreRefused(t *testing.T) {
	for name, test := range map[string]struct{ uri, says string }{
		"a token in front of the host":     {"transit://s.hidden@vault/transit/root", "has credentials in it"},
		"a password":                       {"awskms://AKID:hidden@eu-west-1/" + keyOne, "has credentials in it"},
		"a token as a parameter":           {"transit://vault/transit/root?token=hidden", `parameter "token": has credentials in it`},
		"a secret key as a parameter":      {"awskms://eu-west-1/" + keyOne + "?secret_key=hidden", `parameter "secret_key": has credentials in it`},
		"an access key as a parameter":     {"alicloudkms://cn-hangzhou/k?AccessKeyId=hidden", `parameter "AccessKeyId": has credentials in it`},
		"an unknown parameter":             {"transit://vault/transit/root?timeout=5s", `parameter "timeout" is not known: use namespace, tls, ca-file`},
		"a parameter of another provider":  {"awskms://eu-west-1/" + keyOne + "?namespace=a", `parameter "namespace" is not known: use endpoint, ca-file`},
		"a parameter twice":                {"awskms://eu-west-1/" + keyOne + "?ca-file=/a&ca-file=/b", `parameter "ca-file" must have one value`},
		"an empty parameter":               {"awskms://eu-west-1/" + keyOne + "?ca-file=", `parameter "ca-file" must have one value`},
		"a relative file":                  {"awskms://eu-west-1/" + keyOne + "?ca-file=ca.pem", "absolute path"},
		"a file with detours":              {"awskms://eu-west-1/" + keyOne + "?ca-file=/etc/../ca.pem", "absolute path"},
		"parameters with semicolons":       {"transit://vault/transit/root?a=1;b=2", "has parameters that cannot be read"},
		"a fragment":                       {"transit://vault/transit/root#2", "without a fragment"},
		"percent signs":                    {"transit://vault/transit/ro%2Fot", "plain characters"},
		"a long name":                      {"transit://vault/transit/" + strings.Repeat("a", 600), "at most 512 bytes"},
		"no mount":                         {"transit://vault/root", "transit://HOST:PORT/MOUNT/KEY"},
		"no key":                           {"transit://vault/transit/", "transit://HOST:PORT/MOUNT/KEY"},
		"a path upwards":                   {"transit://vault/transit/../sys/root", "transit://HOST:PORT/MOUNT/KEY"},
		"no host":                          {"transit:///transit/root", "must name the server"},
		"no TLS beyond the pod":            {"transit://10.0.0.1/transit/root?tls=off", "only for an agent at a loopback IP address"},
		"no TLS by a name":                 {"transit://localhost/transit/root?tls=off", "only for an agent at a loopback IP address"},
		"TLS that is not checked":          {"transit://vault/transit/root?tls=skip", "can only be off"},
		"a mount without a role":           {"transit://vault/transit/root?kubernetes-mount=k8s", `"kubernetes-mount" needs "kubernetes-role"`},
		"a role with a slash at its end":   {"transit://vault/transit/root?kubernetes-role=a/", `parameter "kubernetes-role" must be words`},
		"a namespace that is too long":     {"transit://vault/transit/root?namespace=" + strings.Repeat("a/", 600) + "a", `parameter "namespace" is too long`},
		"a namespace that climbs":          {"transit://vault/transit/root?namespace=..", `parameter "namespace" must be words`},
		"no region":                        {"awskms:///" + keyOne, "must name the region"},
		"a host for a region":              {"awskms://kms.eu-west-1.amazonaws.com/" + keyOne, "must name the region"},
		"a region in capitals":             {"awskms://EU_WEST/" + keyOne, "must name the region"},
		"a region that begins with -":      {"awskms://-west/" + keyOne, "must name the region"},
		"a region that is too long":        {"awskms://0123456789abcdef0/" + keyOne, "must name the region"},
		"another installation's key":       {"awskms://0123456789ac/" + arnElsewhere, "names the region 0123456789ac, and a key of 0123456789ab"},
		"no key of AWS":                    {"awskms://eu-west-1/", "must name the key"},
		"a key of another region":          {"awskms://eu-west-2/" + arnOne, "names the region eu-west-2, and a key of eu-west-1"},
		"an endpoint without TLS":          {"awskms://eu-west-1/" + keyOne + "?endpoint=http://kms.example.com", "must begin with https://"},
		"an endpoint with credentials":     {"awskms://eu-west-1/" + keyOne + "?endpoint=https://a:hidden@kms.example.com", "must be https://HOST:PORT"},
		"an endpoint with a path":          {"awskms://eu-west-1/" + keyOne + "?endpoint=https://kms.example.com/a", "must be https://HOST:PORT"},
		"an endpoint without a host":       {"awskms://eu-west-1/" + keyOne + "?endpoint=https://:8443", "must be https://HOST:PORT"},
		"no region of Alibaba":             {"alicloudkms:///k", "must name the region"},
		"no key of Alibaba":                {"alicloudkms://cn-hangzhou/", "must name the key"},
		"a domain that is a URL":           {"alicloudkms://cn-hangzhou/k?domain=https://kms", `parameter "domain" must be HOST`},
		"a domain with credentials in it":  {"alicloudkms://cn-hangzhou/k?domain=a:hidden@kms", `parameter "domain" must be HOST`},
		"a role for AWS, of another shape": {"awskms://eu-west-1/" + keyOne + "?role=a", `parameter "role" is not known`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rootkey.Open(t.Context(), test.uri, logr.Discard())
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v, want the word %q", err, test.says)
			}
			if strings.Contains(err.Error(), "hidden") {
				t.Errorf("the error shows the credential: %v", err)
			}
		})
	}
}
