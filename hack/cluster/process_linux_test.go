package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// childVariable makes the test binary behave as a child to be ended: "deaf" does not hear SIGTERM.
const childVariable = "DATAKEYS_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
	}
	_, _ = os.Stdout.WriteString("ready\n")
	// Until its parent dies or ends it.
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// startChild returns a running child and how it ended, once it has.
func startChild(t *testing.T, kind string, environment ...string) (process, <-chan os.ProcessState) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(environment, childVariable+"="+kind)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	ended := make(chan os.ProcessState, 1)
	go func() {
		_ = cmd.Wait()
		ended <- *cmd.ProcessState
		close(ended)
	}()
	t.Cleanup(func() {
		_ = in.Close()
		for range ended {
		}
	})
	p, err := findProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return p, ended
}

func TestEnd(t *testing.T) {
	tests := map[string]struct {
		child string
		grace time.Duration
		want  syscall.Signal
	}{
		"a process that does as it is told":      {child: "obedient", grace: time.Minute, want: syscall.SIGTERM},
		"a process that does not hear":           {child: "deaf", grace: time.Millisecond, want: syscall.SIGKILL},
		"a process that is to be killed at once": {child: "obedient", want: syscall.SIGKILL},
		"a deaf process that is killed at once":  {child: "deaf", want: syscall.SIGKILL},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, ended := startChild(t, tt.child)
			if !p.alive() {
				t.Fatal("a running process is not alive")
			}
			if err := p.end(tt.grace); err != nil {
				t.Fatal(err)
			}
			state := <-ended
			if status, ok := state.Sys().(syscall.WaitStatus); !ok || status.Signal() != tt.want {
				t.Errorf("ended by %v, want %v", state.String(), tt.want)
			}
			if p.alive() {
				t.Error("an ended process is alive")
			}
			if err := p.end(0); err != nil {
				t.Errorf("ending it again: %v", err)
			}
		})
	}
}

func TestAnotherProcessWithTheSameNumberIsLeftAlone(t *testing.T) {
	p, _ := startChild(t, "obedient")
	former := process{PID: p.PID, Start: p.Start - 1}
	if former.alive() {
		t.Error("a process that ended before its number was given again is alive")
	}
	if err := former.end(0); err != nil {
		t.Error(err)
	}
	if !p.alive() {
		t.Error("the process that has the number now was killed")
	}
}

func TestMarkedProcessesAreFound(t *testing.T) {
	const state = "/some/checkout/.cluster"
	ours, _ := startChild(t, "obedient", "A=b", markVariable+"="+state)
	other, _ := startChild(t, "obedient", markVariable+"="+state+"2")
	plain, _ := startChild(t, "obedient", "OTHER_"+markVariable+"="+state)
	found, err := processes(func(p process) bool { return p.marked(state) })
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0] != ours {
		t.Errorf("found %v, want %v alone; the others are %v and %v", found, ours, other, plain)
	}
	if want := filepath.Base(os.Args[0]); ours.binary() != want {
		t.Errorf("the program is %q, want %q", ours.binary(), want)
	}
}

func TestOnlyALivingDaemonHasARecord(t *testing.T) {
	dir := t.TempDir()
	p, ended := startChild(t, "obedient")
	write := func(name string, r record) {
		t.Helper()
		content, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFile(recordPath(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etcd", record{process: p, Config: "digest"})
	write("former", record{process: process{PID: p.PID, Start: p.Start + 1}})
	if err := os.WriteFile(recordPath(dir, "broken"), []byte(`{"pid":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, ok := readRecord(dir, "etcd"); !ok || r.process != p || r.Config != "digest" {
		t.Errorf("record %+v, %t; want %+v", r, ok, p)
	}
	for _, name := range []string{"former", "broken", "absent"} {
		if r, ok := readRecord(dir, name); ok {
			t.Errorf("%s: record %+v, want none", name, r)
		}
	}
	if err := p.end(0); err != nil {
		t.Fatal(err)
	}
	<-ended
	if r, ok := readRecord(dir, "etcd"); ok {
		t.Errorf("a dead daemon has the record %+v", r)
	}
}

func TestReadStatOfAStrangeCommand(t *testing.T) {
	// A command may hold brackets and blanks, as a copy of the test binary under such a name shows.
	strange := filepath.Join(t.TempDir(), "a) R 1 (b")
	content, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(strange, content, 0o755); err != nil {
		t.Fatal(err)
	}
	plain := os.Args[0]
	os.Args[0] = strange
	t.Cleanup(func() { os.Args[0] = plain })
	p, _ := startChild(t, "obedient")
	start, state, err := readStat(p.PID)
	if err != nil || start == 0 || (state != 'S' && state != 'R') {
		t.Errorf("start %d, state %c, %v", start, state, err)
	}
}
