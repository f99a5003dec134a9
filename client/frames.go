package client

import (
	"bufio"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
)

// maxFrame is the most bytes of a server-sent event, and of a line of it.
const maxFrame = 64 << 10

// frame is a server-sent event, as it comes.
type frame struct {
	event, id, data string
	retry           time.Duration
}

// frames reads server-sent events (WHATWG HTML, section 9.2.6), with lines that end in LF or CR LF, and calls alive for each line. A frame
// may have nothing but an ID or a retry. One that is cut off at the end is dropped.
func frames(r io.Reader, alive func()) iter.Seq2[frame, error] {
	return func(yield func(frame, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxFrame)
		var f frame
		var data []string
		size := 0
		for lines.Scan() {
			alive()
			line := lines.Text()
			if line == "" {
				f.data = strings.Join(data, "\n")
				if f != (frame{}) && !yield(f, nil) {
					return
				}
				f, data, size = frame{}, nil, 0
				continue
			}
			field, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch field {
			case "event":
				f.event = value
			case "id":
				if !strings.Contains(value, "\x00") {
					f.id = value
				}
			case "data":
				if size += len(value) + 1; size > maxFrame {
					yield(frame{}, bufio.ErrTooLong)
					return
				}
				data = append(data, value)
			case "retry":
				if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
					f.retry = time.Duration(ms) * time.Millisecond
				}
			}
		}
		if err := lines.Err(); err != nil {
			yield(frame{}, err)
		}
	}
}
