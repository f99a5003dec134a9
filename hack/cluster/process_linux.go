package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of every process of a node, its value the cluster's folder. Children inherit it
// (containers do not: they get the environment of their image), so what lost its parent and its record is still known.
const markVariable = "DATAKEYS_CLUSTER_NODE"

// daemonPath has what kubelet, kube-proxy and containerd call: mount, iptables, runc and their like.
const daemonPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A process is one process for ever: the kernel gives its number to others later, but not with the same start time.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// findProcess returns the process that has a number now.
func findProcess(pid int) (process, error) {
	start, _, err := readStat(pid)
	return process{PID: pid, Start: start}, err
}

// alive says whether the process runs: one that has ended and waits for its parent to notice does not.
func (p process) alive() bool {
	start, state, err := readStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// readStat reads start time and state of a process from /proc/PID/stat, see proc_pid_stat(5).
func readStat(pid int) (start uint64, state byte, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The second field is the command in brackets, which may hold anything; the start time is field 22.
	end := bytes.LastIndexByte(content, ')')
	fields := bytes.Fields(content[end+1:])
	if end < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("/proc/%d/stat reads %q", pid, content)
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, fields[0][0], err
}

// end asks the process to end, waits for it, and kills it when the grace is over; without a grace it kills at once. A
// process that is gone already, its number perhaps another's, is left alone.
func (p process) end(grace time.Duration) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.alive() { // looked at after opening: from here on, the descriptor means this very process
		return nil
	}
	if grace > 0 {
		if err := ignoreGone(unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)); err != nil {
			return fmt.Errorf("end process %d: %w", p.PID, err)
		}
		if waitPidfd(fd, grace) {
			return nil
		}
	}
	if err := ignoreGone(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)); err != nil {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	if !waitPidfd(fd, killWait) {
		return fmt.Errorf("process %d did not die within %v of SIGKILL", p.PID, killWait)
	}
	return nil
}

// killWait is far more than the kernel needs to take a process apart.
const killWait = 20 * time.Second

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// waitPidfd says whether the process behind a descriptor ended in time.
func waitPidfd(fd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		if left < 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 && err == nil {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// processes lists what runs now and keep wants.
func processes(keep func(process) bool) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, err := findProcess(pid); err == nil && keep(p) && p.alive() {
			found = append(found, p)
		}
	}
	return found, nil
}

// marked says whether the process belongs to the node of a cluster.
func (p process) marked(state string) bool {
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
	mark := []byte(markVariable + "=" + state)
	for variable := range bytes.SplitSeq(environment, []byte{0}) {
		if err == nil && bytes.Equal(variable, mark) {
			return true
		}
	}
	return false
}

// binary is the file name of the program that the process runs.
func (p process) binary() string {
	target, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID))
	return filepath.Base(strings.TrimSuffix(target, " (deleted)"))
}

// A daemon is one component of the node: a process that outlives the command that starts it, and the record of it.
type daemon struct {
	name   string
	args   []string // the first is the path of the program
	inputs []byte   // what else decides how it runs: with other inputs it is started again
	log    string   // appended to
}

// digest tells one way to run a daemon from another.
func (d daemon) digest() string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%q\n", d.args)
	h.Write(d.inputs)
	return hex.EncodeToString(h.Sum(nil))
}

// A record is what is kept of a running daemon.
type record struct {
	process
	Config string `json:"config"` // digest of the daemon
}

func recordPath(dir, name string) string { return filepath.Join(dir, name+".json") }

// readRecord returns the record of a daemon that is alive.
func readRecord(dir, name string) (record, bool) {
	var r record
	content, err := os.ReadFile(recordPath(dir, name))
	if err != nil || json.Unmarshal(content, &r) != nil || !r.alive() {
		return record{}, false
	}
	return r, true
}

// launch starts the daemon in the current thread's namespaces and records it.
func (d daemon) launch(ctx context.Context, dir, state string) error {
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	if err := ctx.Err(); err != nil {
		return err
	}
	// The end of the context must not be the daemon's.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), d.args[0], d.args[1:]...)
	cmd.Dir = state
	// Nothing of the caller's environment, of which proxies for one would reach the calls to webhooks.
	cmd.Env = []string{"PATH=" + daemonPath, markVariable + "=" + state}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // Ctrl-C is for up alone
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	go func() { _ = cmd.Wait() }() // so that one that dies while this command runs is seen as dead
	p, err := findProcess(cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("start %s: it ended at once; see %s: %w", d.name, d.log, err)
	}
	content, err := json.Marshal(record{process: p, Config: d.digest()})
	if err != nil {
		return err
	}
	return writeFile(recordPath(dir, d.name), content, 0o644)
}
