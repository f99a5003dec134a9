package main

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"time"
)

// work encrypts a random message with the newest generation of a data key and decrypts one of the earlier ones, again and again,
// until the context ends. It is how an application goes over to new generations by itself: it keeps the number of the generation
// beside each ciphertext, and asks for the key of that number. What was encrypted it prints, for open; the first thing that goes
// wrong ends it. As one that finishes what it has begun, it goes on for a while after it was told to end, if it is to.
func (r *reader) work(told context.Context, arguments []string) error {
	flags := flag.NewFlagSet("work", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	keep := flags.Bool("keep", false, "")
	last := flags.Duration("last", 0, "")
	if err := flags.Parse(arguments); err != nil || flags.NArg() != 1 {
		return errors.New(usage)
	}
	ctx, end := context.WithCancel(context.WithoutCancel(told))
	defer end()
	defer context.AfterFunc(told, func() { time.AfterFunc(*last, end) })()
	keys := dataKeys{reader: r, name: flags.Arg(0), kept: map[int32]cipher.AEAD{}, keep: *keep}
	var records []record
	for said := *last == 0; ; {
		if !said && told.Err() != nil {
			said = true
			if _, err := fmt.Fprintln(r.out, "# told to end"); err != nil {
				return err
			}
		}
		one, err := keys.encrypt(ctx)
		if err == nil {
			if _, err = fmt.Fprintln(r.out, one); err == nil {
				records = append(records, one)
				err = keys.decryptOneOf(ctx, records)
			}
		}
		if ctx.Err() != nil {
			_, err := fmt.Fprintf(r.out, "# told to end after %d messages\n", len(records))
			return err
		}
		if err != nil {
			return fmt.Errorf("after %d messages: %w", len(records), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(r.pace):
		}
	}
}

// open decrypts everything that work printed. It asks for each generation once.
func (r *reader) open(ctx context.Context, name string) error {
	keys := dataKeys{reader: r, name: name, kept: map[int32]cipher.AEAD{}}
	opened := map[int32]int{}
	lines := bufio.NewScanner(r.in)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		one, err := parseRecord(lines.Text())
		if err != nil {
			return err
		}
		key, found := keys.kept[one.generation]
		if !found {
			if key, err = keys.ofGeneration(ctx, one.generation); err != nil {
				return err
			}
			keys.kept[one.generation] = key
		}
		if err := one.openBy(key, name); err != nil {
			return err
		}
		opened[one.generation]++
	}
	if err := lines.Err(); err != nil {
		return err
	}
	for _, generation := range slices.Sorted(maps.Keys(opened)) {
		if _, err := fmt.Fprintf(r.out, "generation %d: %d opened\n", generation, opened[generation]); err != nil {
			return err
		}
	}
	return nil
}

// record is one message as it is kept: encrypted, with the generation of the data key that it needs. The digest of the message is for the
// test to tell that it came back.
type record struct {
	generation int32
	ciphertext []byte // nonce, ciphertext, tag
	digest     [sha256.Size]byte
}

func (r record) String() string {
	return fmt.Sprintf("%d %s %x", r.generation, base64.StdEncoding.EncodeToString(r.ciphertext), r.digest)
}

func parseRecord(line string) (record, error) {
	var one record
	var ciphertext, digest string
	if _, err := fmt.Sscanf(line, "%d %s %s", &one.generation, &ciphertext, &digest); err != nil {
		return record{}, fmt.Errorf("%q is not a generation, a ciphertext and a digest", line)
	}
	var err error
	if one.ciphertext, err = base64.StdEncoding.DecodeString(ciphertext); err != nil {
		return record{}, fmt.Errorf("the ciphertext of %q is not base64", line)
	}
	sum, err := hex.DecodeString(digest)
	if err != nil || copy(one.digest[:], sum) != sha256.Size || len(sum) != sha256.Size {
		return record{}, fmt.Errorf("the digest of %q is not 32 bytes in hexadecimal", line)
	}
	return one, nil
}

// openBy decrypts the message and compares it with what was encrypted.
func (r record) openBy(key cipher.AEAD, name string) error {
	message, err := key.Open(nil, nil, r.ciphertext, associated(name, r.generation))
	if err != nil {
		return fmt.Errorf("a ciphertext of generation %d does not open: %w", r.generation, err)
	}
	if sum := sha256.Sum256(message); subtle.ConstantTimeCompare(sum[:], r.digest[:]) != 1 {
		return fmt.Errorf("a ciphertext of generation %d opens to another message", r.generation)
	}
	return nil
}

// associated binds a ciphertext to the data key and the generation that it says it is of.
func associated(name string, generation int32) []byte {
	return fmt.Appendf(nil, "%s %d", name, generation)
}

// dataKeys are the generations of one data key, as the socket issues them.
type dataKeys struct {
	reader *reader
	name   string
	// keep has every generation that was issued once be kept and never asked for by number, for a sidecar that knows the newest alone.
	keep bool
	kept map[int32]cipher.AEAD
}

// encrypt encrypts a message with the newest generation.
func (k *dataKeys) encrypt(ctx context.Context) (record, error) {
	generation, key, err := k.ask(ctx, "")
	if err != nil {
		return record{}, fmt.Errorf("ask for the newest generation: %w", err)
	}
	if k.keep {
		k.kept[generation] = key
	}
	message := make([]byte, 64)
	_, _ = rand.Read(message) // it never fails
	return record{generation, key.Seal(nil, nil, message, associated(k.name, generation)), sha256.Sum256(message)}, nil
}

// decryptOneOf decrypts one of the messages, any of them.
func (k *dataKeys) decryptOneOf(ctx context.Context, records []record) error {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(len(records))))
	if err != nil {
		return err
	}
	one := records[i.Int64()]
	key, found := k.kept[one.generation]
	if !found {
		if key, err = k.ofGeneration(ctx, one.generation); err != nil {
			return err
		}
	}
	return one.openBy(key, k.name)
}

// ofGeneration asks for one generation by its number.
func (k *dataKeys) ofGeneration(ctx context.Context, number int32) (cipher.AEAD, error) {
	generation, key, err := k.ask(ctx, fmt.Sprintf("?generation=%d", number))
	if err != nil {
		return nil, fmt.Errorf("ask for generation %d: %w", number, err)
	}
	if generation != number {
		return nil, fmt.Errorf("asked for generation %d and got %d", number, generation)
	}
	return key, nil
}

func (k *dataKeys) ask(ctx context.Context, query string) (int32, cipher.AEAD, error) {
	got, err := k.reader.ask(ctx, http.MethodGet, "/v1/data-keys/"+k.name+query, "application/json")
	if err != nil {
		return 0, nil, err
	}
	defer clear(got.body)
	if got.code != http.StatusOK {
		return 0, nil, got.problem()
	}
	var issued struct {
		Generation int32  `json:"generation"`
		Plaintext  []byte `json:"plaintext"`
	}
	if err := json.Unmarshal(got.body, &issued); err != nil {
		return 0, nil, errors.New("the answer is not JSON of a data key") // what it is may have the key in it
	}
	defer clear(issued.Plaintext)
	block, err := aes.NewCipher(issued.Plaintext)
	if err != nil {
		return 0, nil, err // it names the length alone
	}
	key, err := cipher.NewGCMWithRandomNonce(block)
	return issued.Generation, key, err
}
