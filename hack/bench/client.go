package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// target is one request, which is asked again and again.
type target struct {
	name, floor string
	socket      string
	request     []byte
}

// ask sends a target's request over so many connections for a while, and at most so many times over each. The client is as thin as can be,
// so as not to hide the difference.
func ask(ctx context.Context, t target, conns int, turn time.Duration, most int) (*sample, error) {
	var (
		mu    sync.Mutex
		all   = &sample{}
		errs  error
		group sync.WaitGroup
	)
	start := time.Now()
	for range conns {
		group.Go(func() {
			took, err := askOne(ctx, t, start.Add(turn), most)
			mu.Lock()
			defer mu.Unlock()
			all.latencies, errs = append(all.latencies, took...), errors.Join(errs, err)
		})
	}
	group.Wait()
	all.elapsed = time.Since(start)
	if errs == nil && len(all.latencies) == 0 {
		errs = errors.New("nothing was answered")
	}
	return all, errs
}

func askOne(ctx context.Context, t target, until time.Time, most int) (took []time.Duration, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", t.socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetDeadline(until.Add(10 * time.Second)); err != nil {
		return nil, err
	}
	buffer := make([]byte, 64<<10)
	for now := time.Now(); now.Before(until) && len(took) < most; {
		if _, err := conn.Write(t.request); err != nil {
			return nil, err
		}
		if err := readAnswer(conn, buffer); err != nil {
			return nil, err
		}
		answered := time.Now()
		took, now = append(took, answered.Sub(now)), answered
	}
	return took, ctx.Err()
}

// readAnswer reads an answer with the status 200 and a Content-Length.
func readAnswer(conn net.Conn, buffer []byte) error {
	n, end := 0, -1
	for end < 0 || n < end {
		more, err := conn.Read(buffer[n:])
		if err != nil {
			return err
		}
		n += more
		header, _, whole := bytes.Cut(buffer[:n], []byte("\r\n\r\n"))
		if end >= 0 || !whole {
			continue
		}
		_, length, found := bytes.Cut(header, []byte("Content-Length: "))
		length, _, _ = bytes.Cut(length, []byte("\r\n"))
		size, err := strconv.Atoi(string(length))
		if !found || err != nil || !bytes.HasPrefix(header, []byte("HTTP/1.1 200 ")) || len(header)+4+size > len(buffer) {
			return fmt.Errorf("got the answer %q", buffer[:min(n, 400)])
		}
		end = len(header) + 4 + size
	}
	return nil
}

// post is a POST request.
func post(path string, body []byte, headers ...string) []byte {
	request := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n", path, len(body))
	for _, header := range headers {
		request = fmt.Appendf(request, "%s\r\n", header)
	}
	return append(append(request, "\r\n"...), body...)
}

func get(path string) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
}

// once asks for something and returns the body of the answer.
func once(ctx context.Context, socket string, request []byte) ([]byte, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return body, err
}
