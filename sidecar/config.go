package sidecar

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keeper"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
)

// MaxDataKeys is the most data keys that one sidecar issues: as many as one BatchDecrypt of the key service takes.
const MaxDataKeys = kmsv1.MaxBatch

// Leases say for how long a data key is issued without being renewed.
type Leases = keeper.Leases

// Bounds of the leases.
const (
	MinLease     = keeper.MinLease
	MaxLease     = keeper.MaxLease
	DefaultLease = keeper.DefaultLease
	MaxCoast     = keeper.MaxCoast
	DefaultCoast = keeper.DefaultCoast
)

// Config is what a sidecar needs to know. Every field is required that does not say otherwise.
type Config struct {
	// DataKeys names the data keys to issue: DataKeyRequests of the pod's namespace, 1 to MaxDataKeys.
	DataKeys []string
	// KeysDir holds a directory for each of DataKeys, where the Secret of that name is mounted.
	KeysDir string
	// TokenFile holds the pod's ServiceAccount token for the key service. It is read again for every call.
	TokenFile string
	// Socket is the path at which to listen, at most 107 bytes (unix(7), sun_path).
	Socket string
	// LoopbackPort is the port of 127.0.0.1 on which the front doors are served as well, 1024 to 65535; 0: none.
	LoopbackPort int
	// KeyService is the address of the key service, host:port. Its certificate must name the host.
	KeyService string
	// Roots are the certificates, in PEM, that alone are trusted to have signed the key service's.
	Roots []byte
	// Leases say for how long a data key is issued without being renewed.
	Leases Leases
	// Logger takes what happens. No plaintext is ever given to it.
	Logger *slog.Logger
}

// validate returns every rule that the configuration breaks.
func (c Config) validate() error {
	var errs []error
	if n := len(c.DataKeys); n == 0 || n > MaxDataKeys {
		errs = append(errs, fmt.Errorf("data keys: %d names: must be 1 to %d", n, MaxDataKeys))
	}
	for i, name := range c.DataKeys {
		switch {
		case !envelope.IsSubdomain(name): // which is no path either
			errs = append(errs, fmt.Errorf("data keys: %q: must be the name of a DataKeyRequest: "+
				"a lower-case DNS subdomain (RFC 1123) of at most %d bytes", name, envelope.MaxSubdomain))
		case slices.Contains(c.DataKeys[:i], name):
			errs = append(errs, fmt.Errorf("data keys: %q is named twice: name it once", name))
		}
	}
	if !filepath.IsAbs(c.KeysDir) {
		errs = append(errs, fmt.Errorf("keys directory %q: must be an absolute path", c.KeysDir))
	}
	if !filepath.IsAbs(c.TokenFile) {
		errs = append(errs, fmt.Errorf("token file %q: must be an absolute path", c.TokenFile))
	}
	if err := checkSocketPath(c.Socket); err != nil {
		errs = append(errs, err)
	}
	if err := checkLoopbackPort(c.LoopbackPort); err != nil {
		errs = append(errs, err)
	}
	if err := keyservice.CheckAddress(c.KeyService); err != nil {
		errs = append(errs, err)
	}
	if _, err := keyservice.RootPool(c.Roots); err != nil {
		errs = append(errs, err)
	}
	if err := c.Leases.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
