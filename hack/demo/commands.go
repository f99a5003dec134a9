package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// silence is how long a command may print nothing before it is said that it goes on.
const silence = 15 * time.Second

// command is a child process of the demo. It is told to end, and not killed, when the demo is interrupted.
func command(ctx context.Context, name string, arguments ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, arguments...)
	c.Cancel = func() error { return c.Process.Signal(interrupt) }
	c.WaitDelay = 10 * time.Second
	return c
}

// output runs a command with the given standard input and returns what it printed on the standard output; what it said on the standard error is in the
// error.
func output(ctx context.Context, input, name string, arguments ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	c := command(ctx, name, arguments...)
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := c.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(arguments, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// stream runs a command and shows what it prints as it comes, indented. While it prints nothing, for example because a
// compiler works, it is said now and then that it goes on.
func (d *demo) stream(ctx context.Context, name string, arguments ...string) error {
	d.show(name, arguments...)
	c := command(ctx, name, arguments...)
	out := &indented{out: d.out}
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		return err
	}
	finished := make(chan error, 1)
	go func() { finished <- c.Wait() }()
	started := time.Now()
	heartbeat := time.NewTicker(silence)
	defer heartbeat.Stop()
	for seen := 0; ; {
		select {
		case err := <-finished:
			if err != nil {
				return fmt.Errorf("%s %s: %w", name, strings.Join(arguments, " "), err)
			}
			return nil
		case <-heartbeat.C:
			if seen == out.writes() {
				_, _ = fmt.Fprintf(out, "… %.0f s\n", time.Since(started).Seconds())
			}
			seen = out.writes()
		}
	}
}

// kubectl runs kubectl against the demo's cluster and returns what it printed.
func (d *demo) kubectl(ctx context.Context, arguments ...string) (string, error) {
	return d.kubectlWithInput(ctx, "", arguments...)
}

// kubectlWithInput is kubectl with something on its standard input.
func (d *demo) kubectlWithInput(ctx context.Context, input string, arguments ...string) (string, error) {
	return output(ctx, input, d.kubectlPath, append([]string{"--kubeconfig=" + d.kubeconfig}, arguments...)...)
}

// apply shows and runs kubectl apply.
func (d *demo) apply(ctx context.Context, file string) error {
	d.show("kubectl", "apply", "-f", file)
	said, err := d.kubectl(ctx, "apply", "-f", file)
	d.say("%s", strings.TrimSpace(said))
	return err
}

// get reads one object as JSON. An object that is not there leaves into as it is, and is no error: the callers wait.
func (d *demo) get(ctx context.Context, into any, kind, name string) error {
	said, err := d.kubectl(ctx, "get", kind, name, "--namespace="+namespace, "--ignore-not-found", "--output=json")
	if err != nil || strings.TrimSpace(said) == "" {
		return err
	}
	return json.Unmarshal([]byte(said), into)
}

// waitFor asks again and again until the thing is done, and says each new state that it meets on the way.
func (d *demo) waitFor(ctx context.Context, limit time.Duration, what string, look func(context.Context) (state string, done bool, err error)) error {
	started, last := time.Now(), ""
	for {
		state, done, err := look(ctx)
		if err != nil {
			return err
		}
		if state != "" && state != last {
			d.say("%5.1f s  %s", time.Since(started).Seconds(), state)
			last = state
		}
		if done {
			return nil
		}
		if time.Since(started) > limit {
			return fmt.Errorf("%s: still not after %s (%s). Look with\n  %s get pods,masterkeys,datakeyrequests,events --all-namespaces", what, limit, state, d.kubectlCommand())
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(250 * time.Millisecond):
		}
	}
}
