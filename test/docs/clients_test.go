package docs_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/datakeys/datakeys/client"
	"github.com/datakeys/datakeys/sidecar/podtest"
)

const clientsPage = "docs/clients.md"

// blocks returns the code of that language in a page, in order.
func blocks(t *testing.T, page, language string) (all []string) {
	t.Helper()
	parts := strings.Split(read(t, page), "\n```"+language+"\n")
	for _, part := range parts[1:] {
		code, _, closed := strings.Cut(part, "\n```\n")
		if !closed {
			t.Fatalf("%s: a block of %s does not end", page, language)
		}
		all = append(all, code+"\n")
	}
	if len(all) == 0 {
		t.Fatalf("%s has no block of %s", page, language)
	}
	return all
}

// TestTheProgramsOfTheClientsPage runs each against a sidecar, as it stands on the page: what it prints stands there, too.
func TestTheProgramsOfTheClientsPage(t *testing.T) {
	key := bytes.Repeat([]byte("0123456789abcdef"), 2)
	pod := podtest.New(t, "orders")
	pod.Put(t, "orders", key)
	pod.Start(t)
	keys, err := client.New(client.Options{Socket: pod.Socket})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	texts := blocks(t, clientsPage, "text")
	for i, program := range []struct {
		language, file string
		command        []string
		// Where the program ends, it goes on as an application, and shows its ciphertext.
		end, more, output string
	}{
		{
			"python", "datakeys.py", []string{"python3"}, "    break  #",
			"    sidecar.sock.shutdown(socket.SHUT_RDWR)  # as if it had been idle\n    print(sidecar.get(name, 1)[0])\n" +
				"    sidecar.close()  # and as if it restarted: it takes its socket with it\n    sidecar.path += '.away'\n" +
				"    try:\n        sidecar.get(name)\n    except OSError:\n        sidecar.path = sidecar.path[:-5]\n" +
				"    print(sidecar.get(name, 1)[0])\n" +
				"    print(base64.b64encode(ciphertext).decode())\n", "1\n1\n",
		},
		{
			"js", "datakeys.mjs", []string{"node"}, "  process.exit(); //",
			"  console.log((await get(name, 1)).generation);\n  console.log(ciphertext.toString('base64'));\n", "1\n",
		},
		{
			"java", "Datakeys.java", []string{"java"}, "                    break; //",
			"System.out.println(Base64.getEncoder().encodeToString(ciphertext));", "",
		},
	} {
		t.Run(program.language, func(t *testing.T) {
			code := blocks(t, clientsPage, program.language)
			if len(code) != 1 || i >= len(texts) {
				t.Fatalf("got %d programs, and %d outputs in all", len(code), len(texts))
			}
			file := filepath.Join(t.TempDir(), program.file)
			if strings.Count(code[0], program.end) != 1 {
				t.Fatalf("the program does not end with %q", program.end)
			}
			code[0] = strings.Replace(code[0], program.end, program.more+program.end, 1)
			if err := os.WriteFile(file, []byte(code[0]), 0o600); err != nil {
				t.Fatal(err)
			}
			command := append(program.command, file)
			out, err := runClient(t, pod, command...)
			printed, ciphertext, _ := strings.Cut(out, texts[i]+program.output)
			if err != nil || printed != "" || ciphertext == "" {
				t.Fatalf("got %v and\n%swant\n%s", err, out, texts[i])
			}
			message, err := base64.StdEncoding.DecodeString(strings.TrimSpace(ciphertext))
			if err != nil {
				t.Fatal(err)
			}
			card, err := keys.Decrypt(t.Context(), "orders", message, []byte("customers, row 42, column card"))
			if err != nil || string(card) != "4111 1111 1111 1111" {
				t.Errorf("its ciphertext: got %q, %v", card, err)
			}
			out, err = runClient(t, pod, append(command, "payments")...)
			if err == nil || !strings.Contains(out, "UnknownDataKey") || !strings.Contains(out, "this pod has no data key") {
				t.Errorf("of a data key that is not there: got %v and\n%s", err, out)
			}
		})
	}
	t.Run("sh", func(t *testing.T) {
		code := blocks(t, clientsPage, "sh")
		out, err := runClient(t, pod, "bash", "-euo", "pipefail", "-c", code[len(code)-1])
		if err != nil || !strings.Contains(out, `"name":"orders"`) || !strings.HasSuffix(out, "\n4111 1111 1111 1111") {
			t.Errorf("got %v and\n%s", err, out)
		}
	})
}

// runClient runs a program in the pod and returns what it prints.
func runClient(t *testing.T, pod *podtest.Pod, command ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // only a failure takes so long
	defer cancel()
	c := exec.CommandContext(ctx, command[0], command[1:]...)
	c.Env = append(os.Environ(), "DATAKEYS_SOCKET="+pod.Socket)
	out, err := c.CombinedOutput()
	return string(out), err
}

// TestTheGoOfTheClientsPageIsWhatRuns holds the Go of the page against the examples, which are run.
func TestTheGoOfTheClientsPageIsWhatRuns(t *testing.T) {
	examples := read(t, "client/example_test.go")
	for _, code := range blocks(t, clientsPage, "go") {
		indented := ""
		for line := range strings.Lines(code) {
			if line != "\n" {
				line = "\t" + line
			}
			indented += line
		}
		if !strings.Contains(examples, "\n"+indented) {
			t.Errorf("client/example_test.go does not hold\n%s", code)
		}
	}
}

func TestTheClientsPageHasTheNumbersOfTheClient(t *testing.T) {
	page := strings.Join(strings.Fields(read(t, clientsPage)), " ")
	for _, want := range []string{
		fmt.Sprintf("`Options.KeyAge`, %.0f s unless set, %.0f to %.0f s:", client.DefaultKeyAge.Seconds(), client.MinKeyAge.Seconds(),
			client.MaxKeyAge.Seconds()),
		fmt.Sprintf("never older than %.0f s:", client.DefaultKeyAge.Seconds()),
		fmt.Sprintf("An empty path stands for `%s`.", client.DefaultSocket),
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}
