//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var statusLine = regexp.MustCompile(`(?m)^(VmRSS|RssAnon|VmHWM|Threads):\s+(\d+)`)

// sampleOf reads what the kernel says of a process (proc(5)).
func sampleOf(pid int) (sample, error) {
	folder := fmt.Sprintf("/proc/%d/", pid)
	status, err := os.ReadFile(folder + "status")
	if err != nil {
		return sample{}, err
	}
	open, err := os.ReadDir(folder + "fd")
	if err != nil {
		return sample{}, err
	}
	stat, err := os.ReadFile(folder + "stat")
	if err != nil {
		return sample{}, err
	}
	_, after, _ := strings.Cut(string(stat), ") ") // from the third field on
	fields := strings.Fields(after)
	const userTime, systemTime, ticks = 14 - 3, 15 - 3, 100
	if len(fields) <= systemTime {
		return sample{}, fmt.Errorf("%sstat has %d fields", folder, len(fields))
	}
	user, err := strconv.Atoi(fields[userTime])
	if err != nil {
		return sample{}, err
	}
	system, err := strconv.Atoi(fields[systemTime])
	if err != nil {
		return sample{}, err
	}
	s := sample{at: time.Now(), descriptors: len(open), cpu: time.Duration(user+system) * time.Second / ticks}
	for _, match := range statusLine.FindAllStringSubmatch(string(status), -1) {
		n, err := strconv.Atoi(match[2])
		if err != nil {
			return sample{}, err
		}
		*map[string]*int{"VmRSS": &s.resident, "RssAnon": &s.anonymous, "VmHWM": &s.peaks, "Threads": &s.threads}[match[1]] = n
	}
	if s.resident == 0 {
		return sample{}, fmt.Errorf("process %d has ended and was not waited for", pid)
	}
	return s, nil
}

// mustSample is sampleOf of a process that there has to be.
func mustSample(t *testing.T, pid int) sample {
	t.Helper()
	s, err := sampleOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
