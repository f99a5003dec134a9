package main

import (
	"encoding/base64"
	"fmt"
)

// kubeconfig is a configuration file for one user of the API server, with all it needs inside.
func kubeconfig(server string, ca []byte, user string, c credential) []byte {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: datakeys
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: datakeys
  context: {cluster: datakeys, user: %[3]s}
current-context: datakeys
`, server, encode(ca), user, encode(c.cert), encode(c.key))
}
