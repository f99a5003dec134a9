// Package aws is the sidecar's front door for clients of AWS KMS: the AWS SDKs, the AWS CLI and the AWS Encryption SDK, unmodified. It
// speaks their protocol, JSON 1.1 over HTTP, and has the key service answer. docs/aws-kms.md says what holds for users.
//
//	Door       one request: read, dispatch, answer
//	operation  an operation of AWS KMS: its members, and the call of the key service that it becomes
//	parser     strict JSON
//	request    the members of a request, as they came, and their constraints
//	exception  an error in the words of AWS KMS
//
// A signature is accepted and not verified, and none is needed: whoever can connect is a container of the pod. The key service sees
// the pod's token and decides by it.
package aws
