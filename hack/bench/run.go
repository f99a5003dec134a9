package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// run is a directory with the processes that use it.
type run struct {
	dir       string
	processes []*exec.Cmd
	sidecar   *exec.Cmd
	other     *exec.Cmd // the agent, nil where there is none
}

// start starts a key service, the floors and a sidecar.
func start(ctx context.Context, sidecar string) (r *run, err error) {
	r = &run{}
	defer func() {
		if err != nil {
			r.stop()
		}
	}()
	if r.dir, err = os.MkdirTemp("", "dkb"); err != nil { // kept short: sockets lie in it
		return r, err
	}
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	if _, err := r.process(ctx, nil, self, "-role="+roleKeyService, "-dir="+r.dir); err != nil {
		return r, err
	}
	for _, name := range []string{fileEmpty, fileKeyService} {
		if err := r.await(ctx, func() error { _, err := os.Stat(r.path(name)); return err }); err != nil {
			return r, err
		}
	}
	if _, err := r.process(ctx, nil, self, "-role="+roleFloor, "-dir="+r.dir); err != nil {
		return r, err
	}
	if err := r.mount(); err != nil {
		return r, err
	}
	address, err := os.ReadFile(r.path(fileKeyService))
	if err != nil {
		return r, err
	}
	roots, err := os.ReadFile(r.path(fileRoots))
	if err != nil {
		return r, err
	}
	if r.sidecar, err = r.process(ctx, []string{"DATAKEYS_ROOTS=" + string(roots)}, sidecar, "--data-keys="+dataKey, "--keys-dir="+r.path("keys"),
		"--token-file="+r.path(fileToken), "--socket="+r.path(socketSidecar), "--key-service="+string(address), "--log-level=WARN"); err != nil {
		return r, err
	}
	for _, socket := range []string{socketFloor, socketSidecar} {
		if err := r.await(ctx, func() error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", r.path(socket))
			if err == nil {
				_ = conn.Close()
			}
			return err
		}); err != nil {
			return r, err
		}
	}
	return r, exec.CommandContext(ctx, sidecar, "wait", "--socket="+r.path(socketSidecar)).Run()
}

// mount lays the Secret of the data key out, and the pod's token.
func (r *run) mount() error {
	blob, err := os.ReadFile(r.path(fileBlob))
	if err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(filepath.Join(r.path("keys"), dataKey), 0o700),
		os.WriteFile(filepath.Join(r.path("keys"), dataKey, "ciphertextBlob"), blob, 0o600),
		os.WriteFile(r.path(fileToken), []byte(token), 0o600),
	)
}

func (r *run) process(ctx context.Context, env []string, name string, args ...string) (*exec.Cmd, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Env, c.Stderr = append(os.Environ(), env...), os.Stderr
	if err := c.Start(); err != nil {
		return nil, err
	}
	r.processes = append(r.processes, c)
	return c, nil
}

// await tries something until it succeeds.
func (*run) await(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (r *run) stop() {
	for _, c := range r.processes {
		_ = c.Process.Signal(syscall.SIGTERM)
		_ = c.Wait()
	}
	if r.dir != "" {
		_ = os.RemoveAll(r.dir)
	}
}

// resident returns how much memory a process has now, and had at most, in MB.
func resident(pid int) (now, peak float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kibibytes float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kibibytes); err == nil {
			now = kibibytes * 1024 / 1e6
		} else if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kibibytes); err == nil {
			peak = kibibytes * 1024 / 1e6
		}
	}
	if now == 0 || peak == 0 {
		return 0, 0, fmt.Errorf("/proc/%d/status says nothing of memory", pid)
	}
	return now, peak, nil
}

// message is how much is encrypted at once.
const message = 1 << 10

// targets are what is measured, each with its floor. What has to be made first, such as a ciphertext, is asked for here.
func (r *run) targets(ctx context.Context) ([]target, error) {
	sidecar, floor := r.path(socketSidecar), r.path(socketFloor)
	const keys = "/v1/data-keys/" + dataKey
	octets := "Content-Type: application/octet-stream"
	aws := func(operation, body string) []byte {
		return post("/", []byte(body), "Content-Type: application/x-amz-json-1.1", "X-Amz-Target: TrentService."+operation)
	}
	sealed, err := once(ctx, sidecar, post(keys+"/encrypt", make([]byte, message), octets))
	if err != nil {
		return nil, err
	}
	made, err := once(ctx, sidecar, aws("GenerateDataKey", `{"KeyId":"key","KeySpec":"AES_256"}`))
	if err != nil {
		return nil, err
	}
	blob, err := os.ReadFile(r.path(fileBlob))
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(made), `"CiphertextBlob":"`)
	awsBlob, _, _ := strings.Cut(rest, `"`)
	alibaba := append([]byte{0x0a}, append(varint(len(blob)), blob...)...) // AdvanceDecryptRequest with its field 1
	return []target{
		{bare, "", floor, get("/a")},
		{empty, "", floor, get("/b")},
		{native, bare, sidecar, get(keys)},
		{"encrypt 1 KiB", bare, sidecar, post(keys+"/encrypt", make([]byte, message), octets)},
		{"decrypt 1 KiB", bare, sidecar, post(keys+"/decrypt", sealed, octets)},
		{"AWS Decrypt", empty, sidecar, aws("Decrypt", `{"CiphertextBlob":"`+awsBlob+`"}`)},
		{"AWS Decrypt, declared", empty, sidecar,
			aws("Decrypt", `{"CiphertextBlob":"`+base64.StdEncoding.EncodeToString(blob)+`"}`)},
		{"AWS GenerateDataKey", empty, sidecar, aws("GenerateDataKey", `{"KeyId":"key","KeySpec":"AES_256"}`)},
		{"Alibaba AdvanceDecrypt", empty, sidecar, post("/", alibaba,
			"Content-Type: application/x-protobuf", "x-kms-apiname: AdvanceDecrypt", "x-kms-apiversion: dkms-gcs-0.2")},
	}, nil
}

// varint is a length as protobuf has it.
func varint(n int) (b []byte) {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// cpu is the processor time that the processes have taken so far. It counts in hundredths of a second.
func (r *run) cpu() (all time.Duration) {
	for _, c := range r.processes {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		for _, field := range fields[11:13] {
			ticks, _ := strconv.Atoi(field)
			all += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return all
}
