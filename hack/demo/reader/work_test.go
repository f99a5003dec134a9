package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// generationKey is the plaintext of a generation at the fake sidecar.
func generationKey(generation int) string {
	return strings.Repeat(fmt.Sprint(generation%10), 32)
}

func dataKey(generation int) fake {
	return fake{status: http.StatusOK, contentType: "application/json", body: fmt.Sprintf(`{"generation":%d,"plaintext":%q}`,
		generation, base64.StdEncoding.EncodeToString([]byte(generationKey(generation))))}
}

var unknown = fake{
	status: http.StatusNotFound, contentType: "application/problem+json",
	body: `{"status":404,"reason":"UnknownGeneration","detail":"no"}`,
}

// worked runs work until it has printed that many lines, or fails, and returns what it printed.
func worked(t *testing.T, messages int, arguments []string, answers ...fake) (string, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := make(chan string)
	r := &reader{client: serve(t, answers...), pace: time.Millisecond, out: channel(lines)}
	done := make(chan error, 1)
	go func() { done <- r.run(ctx, append([]string{"work"}, arguments...)) }()
	var out strings.Builder
	for n := 1; ; {
		select {
		case err := <-done:
			return out.String(), err
		case line := <-lines:
			out.WriteString(line)
			if n++; n > messages {
				cancel()
			}
		}
	}
}

func TestWork(t *testing.T) {
	other := dataKey(1)
	other.body = strings.Replace(other.body, base64.StdEncoding.EncodeToString([]byte(generationKey(1))),
		base64.StdEncoding.EncodeToString([]byte(generationKey(7))), 1)
	tests := map[string]struct {
		arguments []string
		answers   []fake
		wantError string // "" where it goes on until told to end
	}{
		"goes on for as long as nothing fails":             {[]string{"orders"}, []fake{dataKey(1)}, ""},
		"keeps the generations that it was issued":         {[]string{"-keep", "orders"}, []fake{dataKey(1), dataKey(2), dataKey(3)}, ""},
		"is refused the newest generation":                 {[]string{"orders"}, []fake{dataKey(1), dataKey(1), denied}, "ask for the newest generation: HTTP 403 Forbidden: AccessDenied: no"},
		"is refused an older generation":                   {[]string{"orders"}, []fake{dataKey(1), unknown}, "after 1 messages: ask for generation 1: HTTP 404 Not Found: UnknownGeneration: no"},
		"gets another generation than the one asked for":   {[]string{"orders"}, []fake{dataKey(1), dataKey(2)}, "after 1 messages: asked for generation 1 and got 2"},
		"gets another key than the one that encrypted":     {[]string{"orders"}, []fake{dataKey(1), other}, "after 1 messages: a ciphertext of generation 1 does not open: cipher: message authentication failed"},
		"gets what is no JSON":                             {[]string{"orders"}, []fake{issued}, "after 0 messages: ask for the newest generation: the answer is not JSON of a data key"},
		"gets a key that is none of AES":                   {[]string{"orders"}, []fake{{http.StatusOK, "application/json", `{"plaintext":"c2VjcmV0"}`}}, "crypto/aes: invalid key size 6"},
		"is told of no data key":                           {nil, []fake{issued}, usage},
		"is told of two data keys":                         {[]string{"a", "b"}, []fake{issued}, usage},
		"does not take a problem without details for more": {[]string{"orders"}, []fake{{http.StatusBadGateway, "text/plain", plaintext}}, "HTTP 502 Bad Gateway without problem details"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := worked(t, 20, test.arguments, test.answers...)
			if got := fmt.Sprint(err); (err == nil) != (test.wantError == "") || err != nil && !strings.Contains(got, test.wantError) {
				t.Errorf("got error %v, want %q", err, test.wantError)
			}
			if said := out + fmt.Sprint(err); strings.Contains(said, plaintext) || strings.Contains(said, generationKey(1)) ||
				strings.Contains(said, base64.StdEncoding.EncodeToString([]byte(generationKey(1)))) {
				t.Error("a key is in the output")
			}
			if test.wantError == "" && !strings.Contains(out, "# told to end after ") {
				t.Errorf("it did not say how many messages there were: %q", out)
			}
		})
	}
}

func TestWorkGoesOnAfterItWasToldToEnd(t *testing.T) {
	out, err := worked(t, 3, []string{"-last=10ms", "orders"}, dataKey(1))
	if err != nil || !strings.Contains(out, "\n# told to end\n") || !strings.Contains(out, "\n# told to end after ") {
		t.Errorf("got %q, error %v, want both that it was told and that it ended", out, err)
	}
	answers := append(slices.Repeat([]fake{dataKey(1)}, 20), denied)
	if out, err := worked(t, 3, []string{"-last=1h", "orders"}, answers...); err == nil || !strings.Contains(out, "\n# told to end\n1 ") {
		t.Errorf("got %q, error %v, want messages after it was told, and the refusal", out, err)
	}
}

func TestOpen(t *testing.T) {
	first, err := worked(t, 3, []string{"-keep", "orders"}, dataKey(1))
	if err != nil {
		t.Fatal(err)
	}
	second, err := worked(t, 2, []string{"-keep", "orders"}, dataKey(2))
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("generation 1: %d opened\ngeneration 2: %d opened\n", strings.Count(first, "\n1 ")+1, strings.Count(second, "\n2 ")+1)
	line, _, _ := strings.Cut(first, "\n")
	fields := strings.Fields(line)
	tests := map[string]struct {
		name      string
		in        string
		answers   []fake
		want      string
		wantError string
	}{
		"everything": {"orders", first + second, []fake{dataKey(1), dataKey(2)}, all, ""},
		"nothing":    {"orders", "", []fake{unknown}, "", ""},
		"a generation that is dropped": {
			"orders", first, []fake{unknown}, "", "ask for generation 1: HTTP 404 Not Found: UnknownGeneration: no",
		},
		"a ciphertext of another data key": {
			"payments", first, []fake{dataKey(1)}, "", "a ciphertext of generation 1 does not open: cipher: message authentication failed",
		},
		"a ciphertext under the number of another generation": {
			"orders", "2" + line[1:] + "\n", []fake{dataKey(2)}, "", "a ciphertext of generation 2 does not open: cipher: message authentication failed",
		},
		"another message than the digest says": {
			"orders", strings.Join(append(fields[:2:2], strings.Repeat("00", 32)), " "), []fake{dataKey(1)}, "", "a ciphertext of generation 1 opens to another message",
		},
		"a line that is no record":       {"orders", "1", []fake{dataKey(1)}, "", `"1" is not a generation, a ciphertext and a digest`},
		"a ciphertext that is no base64": {"orders", "1 ! 00", []fake{dataKey(1)}, "", `the ciphertext of "1 ! 00" is not base64`},
		"a digest that is too short":     {"orders", "1 AA== 00", []fake{dataKey(1)}, "", `the digest of "1 AA== 00" is not 32 bytes in hexadecimal`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			r := &reader{client: serve(t, test.answers...), in: strings.NewReader(test.in), out: &out}
			got := ""
			if err := r.run(t.Context(), []string{"open", test.name}); err != nil {
				got = err.Error()
			}
			if got != test.wantError || out.String() != test.want {
				t.Errorf("got %q and error %q, want %q and %q", out.String(), got, test.want, test.wantError)
			}
		})
	}
}
