// Package keyservice asks the key service, as the pod whose token it reads, over one connection of gRPC and TLS. Two use it: who keeps the
// pod's own data keys has them opened and renewed, and the front doors have done what clients ask them for.
//
// The front doors take turns (doors.go), so that a busy client of theirs never holds up the pod's own data keys, and Decrypts that wait for
// their turn travel together (together.go). Bodies of calls are not logged, and no plaintext is kept.
package keyservice
