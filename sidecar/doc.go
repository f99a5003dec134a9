// Package sidecar is what runs beside an application in its pod: it has the pod's data keys decrypted by the key
// service and issues them, in plaintext, on a unix socket that only the pod's containers see.
//
//	Source               reads the sealed data keys from the mounted Secrets
//	internal/keyservice  asks the key service to open them, over gRPC and TLS, as the pod
//	keeper               is the loop between them: read, ask, publish, try again
//	store                holds the plaintext and what is to be said of each data key
//	api                  answers on the socket that listen made; docs/openapi.yaml says what
//
// Wait and Ready ask a running sidecar over its socket; they are what the kubelet runs inside the container.
//
// The package links neither the Kubernetes libraries nor any vendor's SDK: the sidecar is in every pod, so it is small,
// and it has no credentials but the pod's token for the key service.
package sidecar
