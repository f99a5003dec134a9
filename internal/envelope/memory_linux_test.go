package envelope

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const memoryChildEnv = "DATAKEYS_TEST_MEMORY_LIMIT"

// TestMemoryOfAnUnprivilegedProcess runs as the images do, as a user that may lock no more than its limit.
func TestMemoryOfAnUnprivilegedProcess(t *testing.T) {
	if limit := os.Getenv(memoryChildEnv); limit != "" {
		memoryChild(t, limit)
		return
	}
	tests := map[string]struct {
		limit   int // of locked memory, in bytes
		keys    int
		destroy bool // all of them
		wantErr string
		atLeast int // locked, in KiB
		atMost  int
	}{
		"10,000 keys take 4 % of the usual 8 MiB":   {limit: 8 << 20, keys: 10_000, atLeast: 313, atMost: 320},
		"no locked memory: keys work all the same":  {limit: 0, keys: 1000, wantErr: "is 0 bytes"},
		"too little: what fits is locked":           {limit: 64 << 10, keys: 10_000, wantErr: "is 65536 bytes", atLeast: 64, atMost: 64},
		"locked memory that is freed is given back": {limit: 8 << 20, keys: 10_000, destroy: true, atLeast: 1, atMost: 16},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			// The kernel resolves the link itself, which works for a user that may not enter the directory of the program.
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestMemoryOfAnUnprivilegedProcess$", "-test.v")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %t", memoryChildEnv, test.limit, test.keys, test.destroy))
			cmd.Dir = "/"
			if os.Getuid() == 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			_, told, _ := bytes.Cut(out, []byte("locked: "))
			kib, told, _ := bytes.Cut(told, []byte(" kB, "))
			line, _, _ := bytes.Cut(told, []byte("\n"))
			got, err := strconv.Atoi(string(kib))
			if err != nil || got < test.atLeast || got > test.atMost {
				t.Errorf("got %d KiB locked, %v, want %d to %d", got, err, test.atLeast, test.atMost)
			}
			if test.wantErr == "" && string(line) != "<nil>" || !strings.Contains(string(line), test.wantErr) {
				t.Errorf("MemoryLocked: got %s, want %q", line, test.wantErr)
			}
			t.Logf("%d KiB locked", got)
		})
	}
}

func memoryChild(t *testing.T, told string) {
	var limit uint64
	var n int
	var destroy bool
	if _, err := fmt.Sscan(told, &limit, &n, &destroy); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(rlimitMemlock, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
	all := make([]Material, n)
	for i := range all {
		all[i] = NewMaterial()
	}
	for i, m := range all {
		if !m.Equal(m) || m.Equal(all[(i+1)%n]) {
			t.Error("a material is lost, or two are the same")
		}
	}
	if destroy {
		for _, m := range all {
			m.Destroy()
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(all)
	fields := strings.Fields(string(status))
	i := slices.Index(fields, "VmLck:")
	fmt.Printf("locked: %s kB, %v\n", fields[i+1], MemoryLocked())
}
