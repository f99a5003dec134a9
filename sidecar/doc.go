// Package sidecar is what runs beside an application in its pod: it has the pod's data keys decrypted by the key
// service and issues them, in plaintext, on a unix socket that only the pod's containers see.
//
//	internal/secrets     reads the sealed data keys from the mounted Secrets
//	internal/keyservice  asks the key service to open them, over gRPC and TLS, as the pod
//	internal/keeper      is the loop between them: read, ask, publish, try again
//	internal/keystore    holds the plaintext and what is to be said of each data key
//	api.go               answers on the socket that listener.go made; docs/openapi.yaml says what
//	aws, alibaba         answer clients of AWS KMS and Alibaba Cloud KMS, by the key service (doors.go)
//
// Wait and Ready ask a running sidecar over its socket; they are what the kubelet runs inside the container.
//
// The package links neither the Kubernetes libraries nor any vendor's SDK: the sidecar is in every pod, so it is small,
// and it has no credentials but the pod's token for the key service.
package sidecar
