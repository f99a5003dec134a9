package envelope

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/secrettest"
)

// TestCoreImage takes an image of the memory of a process that has used keys, while it holds them and after it dropped
// them, and searches it. docs/design/memory.md tells of the result.
func TestCoreImage(t *testing.T) {
	if os.Getenv(coreChildEnv) != "" {
		coreChild(t)
		return
	}
	t.Run("keys that are dropped are gone", func(t *testing.T) {
		// Of what no program can clear, the vector registers are the part that would make this fail now and then: they hold
		// what was copied or encrypted last. The kernel writes them into the frame of each signal, and Go, which sends itself
		// signals to preempt, into a place of its own. Here it must not.
		testCoreImage(t, "asyncpreemptoff=1", 0)
	})
	t.Run("preemption leaves what the registers held", func(t *testing.T) {
		testCoreImage(t, "asyncpreemptoff=0", 2) // the kernel's and Go's
	})
}

// testCoreImage allows for so many places for each thread where parts of a secret may be left.
func testCoreImage(t *testing.T, godebug string, placesPerThread int) {
	var given [2 * MaterialSize]byte
	rand.Read(given[:])
	material, sealing := given[:MaterialSize], given[MaterialSize:]
	m, err := MaterialFromBytes(material)
	if err != nil {
		t.Fatal(err)
	}

	child := startCoreChild(t, godebug, given[:])
	secrets := map[string][]byte{"the material": material, "the sealing key": sealing}
	// What Go makes of a secret on the way to the key of one blob. Each opens that blob, and no other.
	derived := map[string][]byte{}
	for i := range coreBlobs {
		blob := mustParse(t, child.readBlob())
		p, err := m.Open(blob, benchAssociated())
		if err != nil {
			t.Fatal(err)
		}
		secrets[fmt.Sprintf("data key %d", i)] = p.AppendTo(insecuresecret.Token{}, nil)
		maps.Copy(derived, derivations(t, fmt.Sprintf("blob %d", i), material, blob))
	}
	child.wait('h')

	found := child.image().find(secrets)
	for name := range secrets {
		if name == forgottenDataKey {
			continue // not held: it may be there or not
		}
		if len(found[name]) == 0 {
			t.Errorf("%s is held and not found: the search below proves nothing", name)
		}
		outside := slices.DeleteFunc(found[name], func(f finding) bool { return f.how == "raw" && f.in.has("lo") && f.in.has("dd") })
		report(t, name+", held, outside of locked memory that is not dumped", outside, placesPerThread*child.threads())
	}

	child.tell('d')
	child.wait('d')
	dropped := child.image()
	maps.Copy(secrets, derived)
	found = dropped.find(secrets)
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		atMost := placesPerThread * child.threads()
		if strings.HasSuffix(name, leftByGo) {
			atMost += coreDerivations
		}
		report(t, name+", dropped", found[name], atMost)
	}
	child.tell('q')
	if err := child.cmd.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("searched %d bytes", dropped.size())
}

// report fails if any part of the secret is in more places than there may be.
func report(t *testing.T, what string, found []finding, atMost int) {
	t.Helper()
	places, most := map[int]int{}, 0
	for _, f := range found {
		places[f.at]++
		most = max(most, places[f.at])
		if atMost == 0 {
			t.Errorf("%s: is there, %s in %s", what, f.how, f.in)
		}
	}
	if most > atMost {
		t.Errorf("%s: a part of it is in %d places, want at most %d", what, most, atMost)
	} else if most > 0 {
		t.Logf("%s: in %d places", what, most)
	}
}

const (
	coreChildEnv     = "DATAKEYS_TEST_CORE_CHILD"
	coreBlobs        = 3
	coreRounds       = 20
	coreWorkers      = 2
	coreDerivations  = 1 + coreRounds*coreWorkers // of each blob's key: sealing it and opening it again
	forgottenDataKey = "data key 2"
	// leftByGo marks what crypto/hkdf leaves on the heap and nobody can reach.
	leftByGo = "HMAC pad"
)

// derivations returns all that is computed from the material on the way to the key of a blob.
func derivations(t *testing.T, name string, material []byte, blob *Blob) map[string][]byte {
	t.Helper()
	prk, err := hkdf.Extract(sha256.New, material, blob.salt[:])
	if err != nil {
		t.Fatal(err)
	}
	info, err := keyInfo(label, blob.Header.append(nil), benchAssociated())
	if err != nil {
		t.Fatal(err)
	}
	okm, err := hkdf.Expand(sha256.New, prk, info, aesKeySize+commitmentSize)
	if err != nil || !bytes.Equal(okm[aesKeySize:], blob.commitment[:]) {
		t.Fatalf("not the key of the blob: %v", err)
	}
	masked := func(mask byte) []byte {
		out := bytes.Clone(prk)
		for i := range out {
			out[i] ^= mask
		}
		return out
	}
	return map[string][]byte{
		name + ", AES key":           okm[:aesKeySize],
		name + ", pseudorandom key":  prk,
		name + ", inner " + leftByGo: masked(0x36), // RFC 2104, section 2
		name + ", outer " + leftByGo: masked(0x5c),
	}
}

// coreChild is the process that is looked into. It uses every way that this package has to use a secret.
func coreChild(t *testing.T) {
	given := make([]byte, 2*MaterialSize) // on the heap: a stack that grows leaves a copy of what is on it
	if _, err := io.ReadFull(os.Stdin, given); err != nil {
		t.Fatal(err)
	}
	m, err1 := MaterialFromBytes(given[:MaterialSize])
	sealing, err2 := MaterialFromBytes(given[MaterialSize:])
	clear(given)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}

	var held []Plaintext
	for i, n := range [coreBlobs]int{32, 2400, 700} {
		p := newPlaintext(t, n)
		blob := mustSeal(t, m, testHeader(KindDataKey), benchAssociated(), p)
		var used sync.WaitGroup
		for range coreWorkers {
			used.Add(1)
			go func() {
				for range coreRounds {
					opened, err := m.Open(mustParse(t, blob), benchAssociated())
					if err != nil || !opened.Equal(p) {
						t.Error("does not open again:", err)
						break
					}
					issued := opened.AppendTo(insecuresecret.Token{}, make([]byte, 0, n))
					clear(issued)
					// Whatever Go's cryptography puts on the stack today, this is worse.
					_ = erasing(func(*traces) error { return opened.s.use(putOnStack) })
					if n <= MaxMessageKeySize {
						message, err := opened.SealMessage(nil, 1, AssociatedData{}, blob)
						if err != nil {
							t.Error(err)
						} else if _, err := openMessage(t, opened, message, AssociatedData{}); err != nil {
							t.Error(err)
						}
					}
					opened.Destroy()
				}
				used.Done()
				<-t.Context().Done() // so that nobody gets the stack
			}()
		}
		used.Wait()
		if i < coreBlobs-1 { // the last one is forgotten
			held = append(held, p)
		}
		length := binary.BigEndian.AppendUint32(nil, uint32(len(blob)))
		if _, err := os.Stdout.Write(append(length, blob...)); err != nil {
			t.Fatal(err)
		}
	}
	for range coreRounds {
		if _, err := m.Fingerprint("name", 16); err != nil {
			t.Fatal(err)
		}
		p, err := PlaintextOfMaterial(NewMaterialID(), m)
		if err != nil {
			t.Fatal(err)
		}
		sealed := mustSeal(t, sealing, testHeader(KindMasterKeyVersion), AssociatedData{}, p)
		p.Destroy()
		if p, err = sealing.Open(mustParse(t, sealed), AssociatedData{}); err != nil {
			t.Fatal(err)
		}
		_, again, err := p.Material()
		if err != nil || !again.Equal(m) {
			t.Fatal("does not read back:", err)
		}
		p.Destroy()
		again.Destroy()
	}

	say := func(what byte) {
		if _, err := os.Stdout.Write([]byte{what}); err != nil {
			t.Fatal(err)
		}
		var told [1]byte
		if _, err := io.ReadFull(os.Stdin, told[:]); err != nil {
			t.Fatal(err)
		}
	}
	say('h')
	for _, p := range held {
		p.Destroy()
	}
	m.Destroy()
	sealing.Destroy()
	for {
		runtime.GC()
		if _, free := keys.class(700).slabs(); free == slabSize/768 {
			break
		}
	}
	say('d')
}

//go:noinline
func putOnStack(secret []byte) error {
	var copied [2400]byte
	copy(copied[:], secret)
	runtime.KeepAlive(&copied)
	return nil
}

// coreProcess is a running child.
type coreProcess struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Writer
	out   *bufio.Reader
}

func startCoreChild(t *testing.T, godebug string, given []byte) *coreProcess {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCoreImage$")
	cmd.Env = append(os.Environ(), coreChildEnv+"=1", "GODEBUG="+strings.Trim(os.Getenv("GODEBUG")+","+godebug, ","))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &coreProcess{t, cmd, stdin, bufio.NewReader(stdout)}
	if _, err := stdin.Write(given); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *coreProcess) readBlob() []byte {
	c.t.Helper()
	var length [4]byte
	if _, err := io.ReadFull(c.out, length[:]); err != nil {
		c.t.Fatal(err)
	}
	blob := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(c.out, blob); err != nil {
		c.t.Fatal(err)
	}
	return blob
}

func (c *coreProcess) wait(what byte) {
	c.t.Helper()
	if got, err := c.out.ReadByte(); err != nil || got != what {
		c.t.Fatalf("the child said %q, %v, want %q", got, err, what)
	}
}

// threads counts those of the process.
func (c *coreProcess) threads() int {
	c.t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	return len(threads)
}

func (c *coreProcess) tell(what byte) {
	c.t.Helper()
	if _, err := c.stdin.Write([]byte{what}); err != nil {
		c.t.Fatal(err)
	}
}

// mapping is one mapping of a process's memory.
type mapping struct {
	name  string // its line in smaps
	flags []string
	bytes []byte
}

func (m *mapping) has(flag string) bool { return slices.Contains(m.flags, flag) }

func (m *mapping) String() string { return fmt.Sprintf("%s %v", m.name, m.flags) }

type coreImage []*mapping

// image reads all memory of the process that anything was written to.
func (c *coreProcess) image() coreImage {
	c.t.Helper()
	folder := fmt.Sprintf("/proc/%d/", c.cmd.Process.Pid)
	smaps, err := os.ReadFile(folder + "smaps")
	if err != nil {
		c.t.Fatal(err)
	}
	mem, err := os.Open(folder + "mem")
	if err != nil {
		c.t.Fatal(err)
	}
	defer mem.Close()
	pages, err := os.Open(folder + "pagemap")
	if err != nil {
		c.t.Fatal(err)
	}
	defer pages.Close()
	var image coreImage
	var m *mapping
	var start, end uint64
	var present bool
	for line := range strings.Lines(string(smaps)) {
		fields := strings.Fields(line)
		switch {
		case !strings.HasSuffix(fields[0], ":"):
			m = &mapping{name: strings.TrimSpace(line)}
			from, to, _ := strings.Cut(fields[0], "-")
			var err1, err2 error
			start, err1 = strconv.ParseUint(from, 16, 64)
			end, err2 = strconv.ParseUint(to, 16, 64)
			if err := errors.Join(err1, err2); err != nil {
				c.t.Fatal(err)
			}
			// The kernel's own pages cannot be read, and of its terabytes of shadow the race detector alone makes sense.
			present = strings.HasPrefix(fields[1], "r") && !strings.Contains(line, "[v") && end-start < 1<<30
		case fields[0] == "VmFlags:":
			m.flags = fields[1:]
			if !present {
				continue
			}
			m.bytes = c.read(mem, pages, start, end)
			image = append(image, m)
		}
	}
	return image
}

// read returns the pages from start to end that are there and not all zero, one behind the other (proc_pid_pagemap(5)).
func (c *coreProcess) read(mem, pages io.ReaderAt, start, end uint64) (b []byte) {
	c.t.Helper()
	pageSize := uint64(os.Getpagesize())
	entries := make([]byte, (end-start)/pageSize*8)
	if _, err := pages.ReadAt(entries, int64(start/pageSize*8)); err != nil {
		c.t.Fatal(err)
	}
	page, zero := make([]byte, pageSize), make([]byte, pageSize)
	for address := start; address < end; address += pageSize {
		entry := binary.NativeEndian.Uint64(entries)
		entries = entries[8:]
		if entry>>62 == 0 { // neither present nor swapped
			continue
		}
		if _, err := mem.ReadAt(page, int64(address)); err != nil {
			c.t.Fatalf("reading %x: %v", address, err)
		}
		if !bytes.Equal(page, zero) {
			b = append(b, page...)
		}
	}
	return b
}

func (i coreImage) size() (n int) {
	for _, m := range i {
		n += len(m.bytes)
	}
	return n
}

type finding struct {
	how string
	at  int // where in the secret the part begins
	in  *mapping
}

// needle is one way to write a part of a secret.
type needle struct {
	name string
	form string
	finding
}

// needles are 16 bytes of each secret at its beginning, its middle and its end, in every form, by their first bytes.
func needles(secrets map[string][]byte) map[uint64][]needle {
	const n = 16
	out := map[uint64][]needle{}
	for name, secret := range secrets {
		for _, at := range []int{0, (len(secret) - n) / 2, len(secret) - n} {
			part := secret[at : at+n]
			forms := map[string]string{
				"raw": string(part), "hex": hex.EncodeToString(part), "upper-case hex": strings.ToUpper(hex.EncodeToString(part)),
			}
			for shift := range 3 {
				forms[fmt.Sprintf("base64 at %d", shift)] = secrettest.Base64Inside(base64.StdEncoding, part, shift)
				forms[fmt.Sprintf("base64 for URLs at %d", shift)] = secrettest.Base64Inside(base64.URLEncoding, part, shift)
			}
			for how, form := range forms {
				first := binary.LittleEndian.Uint64([]byte(form))
				out[first] = append(out[first], needle{name, form, finding{how: how, at: at}})
			}
		}
	}
	return out
}

// find returns where the secrets are. The race detector would look at each of its millions of reads.
//
//go:norace
func (i coreImage) find(secrets map[string][]byte) map[string][]finding {
	all := needles(secrets)
	var likely [1 << 16]bool // by the first two bytes: looking into the map for each byte of an image would take long
	for first := range all {
		likely[uint16(first)] = true
	}
	found := map[string][]finding{}
	for _, m := range i {
		for b := m.bytes; len(b) >= 8; b = b[1:] {
			if !likely[binary.LittleEndian.Uint16(b)] {
				continue
			}
			for _, n := range all[binary.LittleEndian.Uint64(b)] {
				if bytes.HasPrefix(b, []byte(n.form)) {
					n.in = m
					found[n.name] = append(found[n.name], n.finding)
				}
			}
		}
	}
	return found
}
