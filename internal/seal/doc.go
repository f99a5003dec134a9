// Package seal protects master key material at rest. A root key wraps the sealing keys, a sealing key seals the versions
// of master keys, and those wrap data keys:
//
//	root key -> sealing key -> master key version -> data key
//
// The root key is asked once at the start, and once a new sealing key, whatever the number of master keys. Sealing keys
// lie wrapped in the Secret datakeys-sealing-keys, together with the install ID.
//
// Every Secret is made with Create and read back, so that two managers that start at once agree. A Secret that is
// missing or altered where something depends on it is an error that names it and the way out; no new key is ever made in
// the place of one that was lost.
package seal
