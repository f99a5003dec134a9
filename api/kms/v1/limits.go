package kmsv1

// MaxBatch is how many blobs one BatchDecrypt takes, and how many data keys one Renew.
const MaxBatch = 100

// Limits of one request as it is encoded. The status of one that is larger is RESOURCE_EXHAUSTED; of one with more records INTERNAL.
const (
	// MaxRequestSize is in bytes. Every single request fits; whoever has a batch that does not sends several.
	MaxRequestSize = 128 << 10
	// MaxRequestRecords is how many fields a request has with all that are in it: each pair of a context is one.
	MaxRequestRecords = 16 << 10
)
