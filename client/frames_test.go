package client

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func readFrames(text string) (got []frame, lines int, end error) {
	for f, err := range frames(strings.NewReader(text), func() { lines++ }) {
		if err != nil {
			return got, lines, err
		}
		got = append(got, f)
	}
	return got, lines, nil
}

func TestFrames(t *testing.T) {
	long := strings.Repeat("a", maxFrame)
	for name, test := range map[string]struct {
		text string
		want []frame
		err  error
	}{
		"nothing":           {"", nil, nil},
		"an event":          {"event: a\nid: 1\ndata: b\n\n", []frame{{event: "a", id: "1", data: "b"}}, nil},
		"two":               {"event: a\n\nevent: b\n\n", []frame{{event: "a"}, {event: "b"}}, nil},
		"lines with CR LF":  {"event: a\r\ndata: b\r\n\r\n", []frame{{event: "a", data: "b"}}, nil},
		"data of two lines": {"data: a\ndata\ndata: b\n\n", []frame{{data: "a\n\nb"}}, nil},
		"no space":          {"event:a\ndata:b:c\n\n", []frame{{event: "a", data: "b:c"}}, nil},
		"two spaces":        {"data:  a\n\n", []frame{{data: " a"}}, nil},
		"comments, and fields that are not known": {": hello\n:\n\nfoo: bar\n\n\n", nil, nil},
		"a retry":                 {"retry: 1500\n\n", []frame{{retry: 1500 * time.Millisecond}}, nil},
		"a retry that is none":    {"retry: -1\nretry: soon\nretry: 9999999999\n\n", nil, nil},
		"an ID with a zero byte":  {"id: a\x00\nevent: a\n\n", []frame{{event: "a"}}, nil},
		"cut off":                 {"event: a\n\nevent: b\ndata: c\n", []frame{{event: "a"}}, nil},
		"a line that is too long": {"data: " + long + "\n\n", nil, bufio.ErrTooLong},
		"data that is too long": {
			"event: a\n\ndata: " + long[:maxFrame/2] + "\ndata: " + long[:maxFrame/2] + "\n\n", []frame{{event: "a"}}, bufio.ErrTooLong,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, lines, err := readFrames(test.text)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(frame{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err != test.err || err == nil && lines != strings.Count(test.text, "\n") {
				t.Errorf("got %v after %d lines", err, lines)
			}
		})
	}
}

func TestFramesPassOnTheErrorOfTheReader(t *testing.T) {
	broken := errors.New("broken")
	var end error
	for _, err := range frames(iotest.ErrReader(broken), func() {}) {
		end = err
	}
	if end != broken {
		t.Errorf("got %v", end)
	}
}

// FuzzFrames holds that what is read, written and read again is the same, and no larger than what came.
func FuzzFrames(f *testing.F) {
	f.Add("event: a\r\nid: 1\ndata: b\ndata: c\n\n:\n\nretry: 1000\n\n")
	f.Add(generationOne)
	f.Fuzz(func(t *testing.T, text string) {
		got, _, _ := readFrames(text)
		var again strings.Builder
		for _, g := range got {
			if size := len(g.event) + len(g.id) + len(g.data); size > len(text) {
				t.Fatalf("%d bytes from %d", size, len(text))
			}
			if g == (frame{}) {
				t.Fatal("an empty frame")
			}
			if len(g.event) > maxFrame/2 || len(g.id) > maxFrame/2 || len(g.data) > maxFrame/2 {
				return // written with the name of the field, a line could be too long
			}
			if g.event != "" {
				fmt.Fprintf(&again, "event: %s\n", g.event)
			}
			if g.id != "" {
				fmt.Fprintf(&again, "id: %s\n", g.id)
			}
			if g.retry != 0 {
				fmt.Fprintf(&again, "retry: %d\n", g.retry.Milliseconds())
			}
			if g.data != "" {
				for line := range strings.SplitSeq(g.data, "\n") {
					fmt.Fprintf(&again, "data: %s\n", line)
				}
			}
			again.WriteString("\n")
		}
		same, _, err := readFrames(again.String())
		if diff := cmp.Diff(got, same, cmp.AllowUnexported(frame{})); diff != "" || err != nil {
			t.Errorf("read again: %v (-want +got):\n%s", err, diff)
		}
	})
}
