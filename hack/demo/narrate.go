package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

const indent = "    "

// step announces a step.
func (d *demo) step(format string, arguments ...any) {
	d.steps++
	d.print("\n[%3.0f s] %d. %s\n", time.Since(d.started).Seconds(), d.steps, fmt.Sprintf(format, arguments...))
}

// print prints as it is. An output that cannot be written is no reason to stop.
func (d *demo) print(format string, arguments ...any) {
	_, _ = fmt.Fprintf(d.out, format, arguments...)
}

// say prints one or more lines that belong to a step.
func (d *demo) say(format string, arguments ...any) {
	_, _ = fmt.Fprintf(&indented{out: d.out}, format+"\n", arguments...)
}

// show prints a command as the user would type it.
func (d *demo) show(name string, arguments ...string) {
	d.say("$ %s %s", name, strings.Join(arguments, " "))
}

// indented puts an indentation before every line, also where a line comes in pieces.
type indented struct {
	out io.Writer

	mu     sync.Mutex
	inLine bool
	count  int
}

// writes is how often something was written.
func (w *indented) writes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

func (w *indented) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	for line := range bytes.Lines(p) {
		if !w.inLine {
			if _, err := io.WriteString(w.out, indent); err != nil {
				return 0, err
			}
		}
		if _, err := w.out.Write(line); err != nil {
			return 0, err
		}
		w.inLine = !bytes.HasSuffix(line, []byte("\n"))
	}
	return len(p), nil
}
