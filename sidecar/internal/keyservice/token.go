package keyservice

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxTokenSize is the most bytes read of a token; those of Kubernetes have about 1,200.
const maxTokenSize = 16 << 10

// tokenFile is the file with the pod's token. The kubelet puts a new one in its place in time, so every call looks whether it has; only
// then is it read.
type tokenFile struct {
	path string
	read atomic.Pointer[tokenRead]
}

// tokenRead is a token as a file had it. It is not changed.
type tokenRead struct {
	file     os.FileInfo
	metadata map[string]string
}

func (r *tokenRead) isOf(file os.FileInfo) bool {
	return os.SameFile(r.file, file) && r.file.ModTime().Equal(file.ModTime()) && r.file.Size() == file.Size()
}

// GetRequestMetadata implements credentials.PerRPCCredentials. A file that cannot be read now may be readable later.
func (f *tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the pod's token: %v", err)
	}
	if r := f.read.Load(); r != nil && r.isOf(info) {
		return r.metadata, nil
	}
	r, err := readToken(f.path)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the pod's token: %v", err)
	}
	f.read.Store(r)
	return r.metadata, nil
}

func readToken(path string) (*tokenRead, error) {
	f, err := os.Open(path) //nolint:gosec // a path of the command line
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	token, err := io.ReadAll(io.LimitReader(f, maxTokenSize+1))
	if err != nil {
		return nil, err
	}
	token = bytes.TrimSpace(token)
	if len(token) == 0 || len(token) > maxTokenSize {
		return nil, fmt.Errorf("the file %s has to hold 1 to %d bytes", path, maxTokenSize)
	}
	return &tokenRead{info, map[string]string{"authorization": "Bearer " + string(token)}}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*tokenFile) RequireTransportSecurity() bool { return true }
