// Package rootkey opens root keys outside of the cluster, which wrap the sealing keys: a file or a few for each kind of them, by
// the scheme of its URI.
//
//	file://                           file.go
//	kmsv2://                          kmsv2*.go: a plugin on the node, by the protocol of Kubernetes KMS v2
//	transit://                        transit.go: Vault and OpenBao
//	awskms://, alicloudkms://         awskms.go, alicloudkms.go
//
// The last three share wrapping*.go: they are reached with go-kms-wrapping. A root key is a seal.RootKey; when it is asked and what
// becomes of what it wraps is for package seal to say. The embedded root key, secret://, is package seal's own, because it lies
// with the sealing keys. Client libraries of services are linked by this package alone, and this package by the manager alone.
package rootkey
