// Package insecuresecret is the one door to the raw bytes of the secrets of package envelope: whoever reads them
// passes a Token, and so imports this package. The list of its importers is the list of places to audit.
package insecuresecret

// Token states that the caller takes over the care of raw secret bytes: it keeps them out of logs, errors, events,
// API objects and files, and drops them soon. It guards against accident and makes access visible in a review; it
// cannot stop intent.
type Token struct {
	// Without a field of this package, a literal struct{}{} would be assignable to Token, and the import avoidable.
	_ struct{}
}
