// Package envelope is the crypto core: secrets that print nothing, the blob that holds one encrypted data key, and
// sealing and opening it, and the message that is encrypted with a data key. docs/format.md describes both byte by byte.
//
// A blob is made by Material.Seal under a Header, which says what the blob is and which key made it, and
// AssociatedData, which the blob does not carry and which whoever opens it must state again. Both are authenticated:
//
//	blob := header | salt | key commitment | IV | ciphertext | tag
//
// Every blob has an AES-256-GCM key of its own: HKDF-SHA-256 of the wrapping material, the blob's random salt, and
// the header and associated data as info. So one wrapping key may make any number of blobs, and nothing but the very
// same header and associated data leads to the key of a blob.
//
// A message is the same around data that is encrypted with a data key: Plaintext.SealMessage makes it, under a label of its own.
//
// Secrets are in locked memory and cleared when they are dropped, and what computing with them leaves behind is erased:
// docs/design/memory.md says how far.
//
// The package imports the standard library alone, and no logger: what cannot log cannot leak. It is written for Go's
// FIPS 140-3 module and works under GODEBUG=fips140=only.
package envelope
