package sidecartest

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
)

// Logs is a log that a test may read, and wait for, while it is written.
type Logs struct {
	mu      sync.Mutex
	b       bytes.Buffer
	waiting map[string]chan struct{}
}

// Write implements io.Writer.
func (l *Logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.b.Write(p)
	for text, c := range l.waiting {
		if strings.Contains(l.b.String(), text) {
			close(c)
			delete(l.waiting, text)
		}
	}
	return n, err
}

// Await waits for the text to be logged.
func (l *Logs) Await(text string) {
	l.mu.Lock()
	logged := strings.Contains(l.b.String(), text)
	c := make(chan struct{})
	if l.waiting == nil {
		l.waiting = map[string]chan struct{}{}
	}
	if !logged {
		l.waiting[text] = c
	}
	l.mu.Unlock()
	if !logged {
		<-c
	}
}

// String returns what was logged so far.
func (l *Logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Logger returns a logger of every level that writes here.
func (l *Logs) Logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
