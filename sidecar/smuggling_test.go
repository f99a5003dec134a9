package sidecar

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// its stands for the status that a target answers the body with.
const its = 0

// TestNothingIsSmuggled sends a whole sidecar requests of which two readers may find different ends, and what is no request at all. Behind
// each stands one for a plaintext, which nobody may get an answer to.
func TestNothingIsSmuggled(t *testing.T) {
	w := newWhole(t)
	const closed = "0\r\n\r\n"
	for name, test := range map[string]struct {
		headers, body string // of a POST to the target
		raw           string // in place of it all
		want          []int  // the statuses of all answers
	}{
		"a length and chunks":                {headers: "Content-Length: 5\r\nTransfer-Encoding: chunked", body: closed, want: []int{its}},
		"chunks and a length":                {headers: "Transfer-Encoding: chunked\r\nContent-Length: 5", body: closed, want: []int{its}},
		"chunks and a length of all":         {headers: "Transfer-Encoding: chunked\r\nContent-Length: 1000", body: closed, want: []int{its}},
		"two lengths":                        {headers: "Content-Length: 5\r\nContent-Length: 0", body: "hello", want: []int{400}},
		"a list of lengths":                  {headers: "Content-Length: 0, 5", body: "hello", want: []int{400}},
		"a length with a sign":               {headers: "Content-Length: +5", body: "hello", want: []int{400}},
		"a length below zero":                {headers: "Content-Length: -1", want: []int{400}},
		"an empty length":                    {headers: "Content-Length:", body: "hello", want: []int{400}},
		"a length with a space in it":        {headers: "Content-Length: 0 5", body: "hello", want: []int{400}},
		"a length and a line feed":           {headers: "Content-Length: 0\nContent-Length: 5", body: "hello", want: []int{400}},
		"a length in a folded line":          {headers: "Content-Length:\r\n 0\r\nContent-Length: 5", body: "hello", want: []int{400}},
		"a length by a space":                {headers: "Content-Length : 5", body: "hello", want: []int{400}},
		"a length behind a space":            {headers: " Content-Length: 5", body: "hello", want: []int{4, 4}},
		"chunks in odd letters":              {headers: "Transfer-Encoding: cHuNkEd", body: closed, want: []int{its}},
		"chunks by a space":                  {headers: "Transfer-Encoding : chunked", body: closed, want: []int{400}},
		"chunks behind a tab":                {headers: "Transfer-Encoding:\tchunked", body: closed, want: []int{its}},
		"chunks behind a vertical tab":       {headers: "Transfer-Encoding: \x0bchunked", body: closed, want: []int{400}},
		"chunks of another name":             {headers: "Transfer-Encoding: xchunked", body: closed, want: []int{501}},
		"chunks in quotes":                   {headers: "Transfer-Encoding: \"chunked\"", body: closed, want: []int{501}},
		"chunks twice":                       {headers: "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", body: closed, want: []int{501}},
		"chunks twice in a list":             {headers: "Transfer-Encoding: chunked, chunked", body: closed, want: []int{501}},
		"chunks and an empty one":            {headers: "Transfer-Encoding: chunked\r\nTransfer-Encoding:", body: closed, want: []int{501}},
		"identity":                           {headers: "Transfer-Encoding: identity\r\nContent-Length: 5", body: "hello", want: []int{501}},
		"identity, then chunks":              {headers: "Transfer-Encoding: identity, chunked", body: closed, want: []int{501}},
		"chunks that are compressed":         {headers: "Transfer-Encoding: gzip, chunked", body: closed, want: []int{501}},
		"a chunk with an extension":          {headers: "Transfer-Encoding: chunked", body: "2;a=\"b\"\r\n{}\r\n" + closed, want: []int{its}},
		"a chunk with a long extension":      {headers: "Transfer-Encoding: chunked", body: "2;" + strings.Repeat("a", 32<<10) + "\r\n{}\r\n" + closed, want: []int{400}},
		"many chunks with extensions":        {headers: "Transfer-Encoding: chunked", body: strings.Repeat("1;"+strings.Repeat("a", 1000)+"\r\n \r\n", 200) + closed, want: []int{400}},
		"an extension with a line feed":      {headers: "Transfer-Encoding: chunked", body: "2;\n{}\r\n" + closed, want: []int{400}},
		"a chunk with a sign":                {headers: "Transfer-Encoding: chunked", body: "+2\r\n{}\r\n" + closed, want: []int{400}},
		"a chunk with a prefix":              {headers: "Transfer-Encoding: chunked", body: "0x2\r\n{}\r\n" + closed, want: []int{400}},
		"a chunk of no size":                 {headers: "Transfer-Encoding: chunked", body: "\r\n{}\r\n" + closed, want: []int{400}},
		"a chunk below zero":                 {headers: "Transfer-Encoding: chunked", body: "-2\r\n{}\r\n" + closed, want: []int{400}},
		"a chunk of 2^63":                    {headers: "Transfer-Encoding: chunked", body: "8000000000000000\r\n" + strings.Repeat(" ", 512<<10), want: []int{4}},
		"a chunk beyond all numbers":         {headers: "Transfer-Encoding: chunked", body: "10000000000000002\r\n{}\r\n" + closed, want: []int{400}},
		"a chunk longer than it says":        {headers: "Transfer-Encoding: chunked", body: "1\r\n{}\r\n" + closed, want: []int{400}},
		"a chunk shorter than it says":       {headers: "Transfer-Encoding: chunked", body: "3\r\n{}\r\n" + closed, want: []int{400}},
		"chunks in bare lines":               {headers: "Transfer-Encoding: chunked", body: "2\n{}\n0\n\n", want: []int{400}},
		"chunks with a trailer":              {headers: "Transfer-Encoding: chunked", body: "0\r\nContent-Length: 5\r\n\r\n", want: []int{its}},
		"chunks with a trailer of all kinds": {headers: "Transfer-Encoding: chunked\r\nTrailer: X-Amz-Target", body: "0\r\nX-Amz-Target: TrentService.Decrypt\r\n\r\n", want: []int{400}},
		"a header in a folded line":          {headers: "X: a\r\n Transfer-Encoding: chunked", want: []int{its, 400}, body: closed},
		"a header behind a carriage return":  {headers: "X: a\rContent-Length: 5", body: "hello", want: []int{400}},
		"a header with a zero byte":          {headers: "X: a\x00b\r\nContent-Length: 0", want: []int{400}},
		"a name with a zero byte":            {headers: "X\x00: a\r\nContent-Length: 0", want: []int{400}},
		"a header without a name":            {headers: ": a\r\nContent-Length: 0", want: []int{400}},
		"a header without a colon":           {headers: "Content-Length\r\nX: a", want: []int{400}},
		"another host":                       {headers: "Host: evil.example\r\nContent-Length: 0", want: []int{400}},
		"a header of 1 MB":                   {headers: "X: " + strings.Repeat("x", 1<<20), want: []int{431}},
		"10,000 headers":                     {headers: strings.Repeat("X: y\r\n", 10_000) + "Z: z", want: []int{431}},

		"CONNECT":                        {raw: "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", want: []int{4, 200}},
		"CONNECT to itself":              {raw: "CONNECT / HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{4, 200}},
		"the form of an authority":       {raw: "POST localhost:80 HTTP/1.1\r\nHost: l\r\nContent-Length: 0\r\n\r\n", want: []int{4, 200}},
		"the form of a star":             {raw: "POST * HTTP/1.1\r\nHost: l\r\nContent-Length: 0\r\n\r\n", want: []int{4, 200}},
		"a target of another scheme":     {raw: "POST file:///etc/passwd HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{4, 200}},
		"a target with a space":          {raw: "POST / x HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{400}},
		"a target with a zero byte":      {raw: "POST /\x00 HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{400}},
		"no target":                      {raw: "POST  HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{400}},
		"a method that is none":          {raw: "PO(ST / HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{400}},
		"a line before":                  {raw: "\r\nPOST / HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{400}},
		"HTTP/0.9":                       {raw: "GET /v1/data-keys/orders\r\n", want: []int{400}},
		"HTTP/0.9, with its number":      {raw: "GET /v1/data-keys/orders HTTP/0.9\r\nHost: l\r\n\r\n", want: []int{505}},
		"HTTP/1.2":                       {raw: "POST /nowhere HTTP/1.2\r\nHost: l\r\n\r\n", want: []int{4, 200}},
		"HTTP/1.10":                      {raw: "POST / HTTP/1.10\r\nHost: l\r\n\r\n", want: []int{400}},
		"the beginning of HTTP/2":        {raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", want: []int{4}},
		"a TLS hello":                    {raw: "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", want: []int{400}},
		"no host":                        {raw: "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", want: []int{400}},
		"a host with a space":            {raw: "POST / HTTP/1.1\r\nHost: l m\r\nContent-Length: 0\r\n\r\n", want: []int{400}},
		"a host with a zero byte":        {raw: "POST / HTTP/1.1\r\nHost: l\x00\r\nContent-Length: 0\r\n\r\n", want: []int{400}},
		"a host that is a header":        {raw: "POST / HTTP/1.1\r\nHost: l\rX: y\r\nContent-Length: 0\r\n\r\n", want: []int{400}},
		"nothing but zero bytes":         {raw: strings.Repeat("\x00", 100) + "\r\n\r\n", want: []int{400}},
		"a line of 1 MB":                 {raw: strings.Repeat("x", 1<<20), want: []int{431}},
		"a target of 1 MB":               {raw: "POST /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: l\r\n\r\n", want: []int{431}},
		"a body where none is read":      {raw: "POST /nowhere HTTP/1.1\r\nHost: l\r\nContent-Length: 10\r\n\r\n", want: []int{4}},
		"chunks where none are read":     {raw: "POST /nowhere HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n", want: []int{4}},
		"HTTP/1.0 and chunks":            {raw: "POST PATH HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nHEADERS\r\n\r\n", want: []int{its}},
		"HTTP/1.0, chunks and a length":  {raw: "POST PATH HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\nHEADERS\r\n\r\n", want: []int{its}},
		"HTTP/1.0 and chunks nowhere":    {raw: "POST /nowhere HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nHEADERS\r\n\r\n", want: []int{4}},
		"HTTP/1.0 and chunks for health": {raw: "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nHEADERS\r\n\r\n", want: []int{its}},
	} {
		for where, x := range w.targets {
			t.Run(name+", to "+where, func(t *testing.T) {
				sends := test.raw
				if sends == "" {
					sends = x.head(test.headers) + test.body
				}
				sends = strings.NewReplacer("PATH", x.path, "HEADERS\r\n", x.headers).Replace(sends)
				got, said := answersTo(t, x.dial(t), sends+x.last())
				if bytes.Contains(said, x.answer) && !slices.Contains(test.want, http.StatusOK) {
					t.Error("the second request was answered")
				}
				want := make([]int, len(test.want))
				for i := range want {
					switch want[i] = test.want[i]; {
					case i < len(got) && (want[i] == its || want[i] == got[i]/100):
						want[i] = got[i]
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
	w.check(t)
}

// last is a request that ends its connection.
func (x target) last() string {
	return x.head("Connection: close", fmt.Sprint("Content-Length: ", len(x.body))) + x.body
}

// answersTo sends all of it, and returns the statuses of all answers until the connection ends, and everything that was answered.
func answersTo(t *testing.T, c net.Conn, sends string) (statuses []int, said []byte) {
	t.Helper()
	go func() { _, _ = io.WriteString(c, sends) }()        // which ends when the sidecar has heard enough
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second)) // only a failure takes so long
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &raw))
	for {
		response, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
		if err != nil {
			if _, rest := io.Copy(io.Discard, in); errors.Is(rest, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the connection is neither answered nor closed")
			}
			return statuses, raw.Bytes()
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		statuses = append(statuses, response.StatusCode)
	}
}

// TestOtherWaysToAsk that are no smuggling: each is answered as what it is, and what stands behind it as another request.
func TestOtherWaysToAsk(t *testing.T) {
	w := newWhole(t)
	for name, x := range w.targets {
		length := fmt.Sprint("Content-Length: ", len(x.body))
		for how, test := range map[string]struct {
			sends string
			want  int // answers with the plaintext
		}{
			"one after the other, sent at once": {x.request() + x.request() + x.last(), 3},
			"the form of a whole URL": {
				strings.Replace(x.request(), " "+x.path, " http://"+strings.TrimSpace(strings.TrimPrefix(x.headers[:strings.Index(x.headers, "\r")], "Host:"))+x.path, 1) +
					x.last(), 2,
			},
			"an upgrade to HTTP/2 that is passed over": {
				x.head(length, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__") + x.body + x.last(), 2,
			},
			"an upgrade to a web socket that is passed over": {
				x.head(length, "Connection: Upgrade", "Upgrade: websocket") + x.body + x.last(), 2,
			},
			"lines without carriage returns": {strings.ReplaceAll(x.head(length), "\r\n", "\n") + x.body + x.last(), 2},
			"HTTP/1.0":                       {strings.Replace(x.request(), "HTTP/1.1", "HTTP/1.0", 1) + x.last(), 1},
			"HTTP/1.0 with a connection to be kept, which is not": {
				strings.Replace(x.head(length, "Connection: keep-alive"), "HTTP/1.1", "HTTP/1.0", 1) + x.body + x.last(), 1,
			},
			"the last of a connection": {x.head(length, "Connection: close") + x.body + x.last(), 1},
		} {
			t.Run(how+", to "+name, func(t *testing.T) {
				statuses, said := answersTo(t, x.dial(t), test.sends)
				if got := bytes.Count(said, x.answer); got != test.want || len(statuses) != test.want {
					t.Errorf("got %d plaintexts in answers of %v, want %d", got, statuses, test.want)
				}
			})
		}
	}
}
