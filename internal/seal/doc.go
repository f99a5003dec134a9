// Package seal protects master key material at rest. A root key wraps the sealing keys, a sealing key seals the versions
// of master keys, and those wrap data keys:
//
//	root key -> sealing key -> master key version -> data key
//
// The root key is asked at the start, once a version of the sealing key, and for each new one, whatever the number of master
// keys. Sealing keys lie wrapped in the Secret datakeys-sealing-keys, together with the install ID, each under every root key
// of the installation: one, and two while the root key is being changed.
//
// Where to look: layout.go has what lies in that Secret; open.go the start; learn.go what other managers did since;
// migrate.go the change of the root key; rotate.go that of the sealing key; report.go what to tell an operator; embedded.go the
// one kind of root key that lies here, in a Secret. Those of all other kinds are package rootkey's, which Config is given, so
// that whoever imports this package links no client of any service.
//
// Every Secret is made with Create and read back, so that two managers that start at once agree, and changed by
// compare-and-swap only, one step at a time, each decided from what is durable. A Secret that is
// missing or altered where something depends on it is an error that names it and the way out; no new key is ever made in
// the place of one that was lost.
package seal
