package envelope

import "errors"

var (
	// ErrNotMine reports a blob that the key at hand cannot have made: it is of another format version or algorithm,
	// or its header names another key, key version or material. Another key may still open it. It reports a message of
	// another format version or algorithm, too.
	ErrNotMine = errors.New("envelope: the blob was not made by this key")

	// ErrBroken reports a blob or message that is malformed or does not authenticate: damaged, cut off, or opened with
	// another context, raw associated data or header than it was sealed with. Which of them it was is not said, and for
	// all but malformed ones not known.
	ErrBroken = errors.New("envelope: the blob is damaged or was sealed with other associated data")

	// ErrInvalid reports an argument that breaks a rule of the format. The error that wraps it names the field and the
	// limit.
	ErrInvalid = errors.New("envelope: invalid argument")

	// ErrDestroyed reports a secret that was destroyed, or was never set.
	ErrDestroyed = errors.New("envelope: the secret was destroyed or never set")
)
