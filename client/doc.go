// Package client is for applications in a pod with a Datakeys sidecar. It asks the sidecar for data keys on its unix socket, and
// encrypts with them.
//
// There are two ways to encrypt, which make and read the same messages (docs/format.md):
//
//   - [Client.AEAD] gets the data key and encrypts in this process, with no call for each message. The key is in this process's memory,
//     and is used there for at most [Options.KeyAge] after it was asked for.
//   - [Client.Encrypt] and [Client.Decrypt] have the sidecar do it. The key never enters this process, and each message is a call
//     over the socket.
//
// Either way a message names the generation of its data key, so data that was encrypted before a rotation opens after it.
//
// Errors of the sidecar, and those that this package finds itself, are an [*Error]: it says what it is for programs and for people, and
// whether trying again helps.
//
// The package reads no environment. An application passes the path of the socket, which the sidecar's injector puts into DATAKEYS_SOCKET:
//
//	client.New(client.Options{Socket: os.Getenv("DATAKEYS_SOCKET")})
//
// It links the standard library and the crypto core of Datakeys, and nothing else. docs/clients.md tells more, for other languages too.
package client
