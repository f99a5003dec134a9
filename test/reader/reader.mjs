// A reader and writer of Datakeys' blobs and messages, version 1 of each, in JavaScript (Node.js 18 or newer and nothing else), written
// from docs/format.md and not from the Go code. It proves that the document is enough to open them with.
//
//   node reader.mjs VECTORS.json [flip]
//
// runs it over the test vectors and prints one JSON array: {list, name, failure} a vector, failure being null where it passed.
// With the word flip it also refuses every good blob and message with any one bit flipped, and cut to any length.
//
// Each line that ends in "// rule" is a rule of the document that some vector needs: reader_test.go leaves them out one by one.
import {createCipheriv, createDecipheriv, createHmac, timingSafeEqual} from 'node:crypto';
import {readFileSync} from 'node:fs';

// Its message is one of the three answers of the document: "not mine", "broken" and "invalid argument".
class Refused extends Error {}
const broken = () => new Refused('broken');
const notMine = () => new Refused('not mine');
const invalid = () => new Refused('invalid argument');

const LABEL = Buffer.from('datakeys.io/blob/v1\0', 'latin1');
const MESSAGE_LABEL = Buffer.from('datakeys.io/message/v1\0', 'latin1');
const DNS_LABEL = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const DNS_SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const SCOPED = new Set([1, 5]);

const u32 = (n) => {
  const b = Buffer.alloc(4);
  b.writeUInt32BE(n);
  return b;
};
const sized = (bytes) => Buffer.concat([u32(bytes.length), bytes]);
const isZero = (bytes) => bytes.every((b) => b === 0);

// ASCII only: a byte above 127 becomes a character that no rule allows.
const text = (bytes) => bytes.toString('latin1');

function utf8(string) {
  const bytes = Buffer.from(string, 'utf8');
  if (bytes.toString('utf8') !== string) throw invalid(); // half of a surrogate pair
  return bytes;
}

// context is an object of strings, raw a Buffer; either may be undefined.
export function encodeAssociated({context = {}, raw = Buffer.alloc(0)}) {
  const pairs = Object.entries(context).map(([key, value]) => [utf8(key), utf8(value)]);
  if (pairs.length > 0 && raw.length > 0) throw invalid(); // rule
  if (pairs.length > 1024) throw invalid(); // rule
  if (pairs.reduce((sum, [key, value]) => sum + key.length + value.length, 0) > 8192) throw invalid(); // rule
  if (raw.length > 8192) throw invalid(); // rule
  if (pairs.length > 0) {
    pairs.sort(([a], [b]) => Buffer.compare(a, b));
    return Buffer.concat([Buffer.of(1), u32(pairs.length), ...pairs.flatMap(([key, value]) => [sized(key), sized(value)])]);
  }
  if (raw.length > 0) return Buffer.concat([Buffer.of(2), sized(raw)]);
  return Buffer.of(0);
}

export function parse(blob) {
  const n = blob.length;
  if (n === 0) throw broken(); // rule
  if (n > 6144) throw broken(); // rule
  if (blob[0] !== 1) throw notMine(); // rule
  if (n === 1) throw broken(); // rule
  if (blob[1] !== 1) throw notMine(); // rule
  if (n < 45) throw broken(); // rule
  const N = blob[39];
  if (N > 63) throw broken(); // rule
  if (n < 45 + N) throw broken(); // rule
  const M = blob[40 + N];
  if (M > 253) throw broken(); // rule
  if (n < 45 + N + M) throw broken(); // rule
  const H = 45 + N + M;
  const header = {
    kind: blob[2],
    keyId: blob.subarray(3, 19),
    keyVersion: blob.readUInt32BE(19),
    materialId: blob.subarray(23, 39),
    namespace: text(blob.subarray(40, 40 + N)),
    name: text(blob.subarray(41 + N, 41 + N + M)),
    generation: blob.readUInt32BE(41 + N + M),
  };
  checkHeader(header);
  const P = n - H - 92;
  if (P < 1) throw broken(); // rule
  if (P > 4096) throw broken(); // rule
  return {
    ...header,
    header: blob.subarray(0, H),
    salt: blob.subarray(H, H + 32),
    commitment: blob.subarray(H + 32, H + 64),
    iv: blob.subarray(H + 64, H + 76),
    ciphertext: blob.subarray(H + 76, n - 16),
    tag: blob.subarray(n - 16),
  };
}

function checkHeader(h) {
  if (h.kind < 1) throw broken(); // rule
  if (h.kind > 6) throw broken(); // rule
  if (isZero(h.keyId)) throw broken(); // rule
  if (h.keyVersion < 1) throw broken(); // rule
  if (isZero(h.materialId)) throw broken(); // rule
  if (SCOPED.has(h.kind)) {
    if (!DNS_LABEL.test(h.namespace)) throw broken(); // rule
    if (!DNS_SUBDOMAIN.test(h.name)) throw broken(); // rule
    if (h.generation < 1) throw broken(); // rule
  } else {
    if (h.namespace !== '') throw broken(); // rule
    if (h.name !== '') throw broken(); // rule
    if (h.generation !== 0) throw broken(); // rule
  }
}

// HKDF by hand: Node's own takes no info above 1024 bytes.
export function derive(material, salt, header, associated, label = LABEL) {
  const info = Buffer.concat([label, header, associated]);
  const hmac = (key, ...parts) => parts.reduce((h, part) => h.update(part), createHmac('sha256', key)).digest();
  const prk = hmac(salt, material);
  const key = hmac(prk, info, Buffer.of(1));
  return {info, key, commitment: hmac(prk, key, info, Buffer.of(2))};
}

// caller is the key that the caller holds: {keyId, keyVersion, materialId}.
export function open(blob, material, associated, caller) {
  const encoded = encodeAssociated(associated);
  const b = parse(blob);
  if (!b.keyId.equals(caller.keyId)) throw notMine(); // rule
  if (b.keyVersion !== caller.keyVersion) throw notMine(); // rule
  if (!b.materialId.equals(caller.materialId)) throw notMine(); // rule
  const {key, commitment} = derive(material, b.salt, b.header, encoded);
  if (!timingSafeEqual(commitment, b.commitment)) throw broken(); // rule
  const gcm = createDecipheriv('aes-256-gcm', key, b.iv, {authTagLength: 16});
  gcm.setAuthTag(b.tag);
  const plaintext = gcm.update(b.ciphertext);
  try {
    gcm.final();
  } catch {
    throw broken(); // rule
  }
  return plaintext;
}

// Takes salt and iv, which only the writer of a test may: they make the blob that a vector holds.
export function seal(h, material, associated, salt, iv, plaintext) {
  const encoded = encodeAssociated(associated);
  checkHeader(h);
  const namespace = Buffer.from(h.namespace, 'latin1');
  const name = Buffer.from(h.name, 'latin1');
  if (namespace.length > 63 || name.length > 253 || plaintext.length < 1 || plaintext.length > 4096) throw invalid();
  const header = Buffer.concat([
    Buffer.of(1, 1, h.kind), h.keyId, u32(h.keyVersion), h.materialId,
    Buffer.of(namespace.length), namespace, Buffer.of(name.length), name, u32(h.generation),
  ]);
  const {info, key, commitment} = derive(material, salt, header, encoded);
  const gcm = createCipheriv('aes-256-gcm', key, iv, {authTagLength: 16});
  const ciphertext = Buffer.concat([gcm.update(plaintext), gcm.final()]);
  return {info, key, commitment, blob: Buffer.concat([header, salt, commitment, iv, ciphertext, gcm.getAuthTag()])};
}

export function parseMessage(message) {
  const n = message.length;
  if (n === 0) throw broken(); // rule
  if (n > 1048674) throw broken(); // rule
  if (message[0] !== 129) throw notMine(); // rule
  if (n === 1) throw broken(); // rule
  if (message[1] !== 1) throw notMine(); // rule
  if (n < 98) throw broken(); // rule
  const generation = message.readUInt32BE(2);
  if (generation < 1) throw broken(); // rule
  return {
    generation,
    header: message.subarray(0, 6),
    salt: message.subarray(6, 38),
    commitment: message.subarray(38, 70),
    iv: message.subarray(70, 82),
    ciphertext: message.subarray(82, n - 16),
    tag: message.subarray(n - 16),
  };
}

function checkMessageArguments(dataKey, associated) {
  if (dataKey.length < 16) throw invalid(); // rule
  if (dataKey.length > 1024) throw invalid(); // rule
  if (associated.context && Object.keys(associated.context).length > 0) throw invalid(); // rule
  return encodeAssociated(associated);
}

// The caller has found the data key by the generation that parseMessage returns.
export function openMessage(message, dataKey, associated) {
  const encoded = checkMessageArguments(dataKey, associated);
  const m = parseMessage(message);
  const {key, commitment} = derive(dataKey, m.salt, m.header, encoded, MESSAGE_LABEL);
  if (!timingSafeEqual(commitment, m.commitment)) throw broken(); // rule
  const gcm = createDecipheriv('aes-256-gcm', key, m.iv, {authTagLength: 16});
  gcm.setAuthTag(m.tag);
  const plaintext = gcm.update(m.ciphertext);
  try {
    gcm.final();
  } catch {
    throw broken(); // rule
  }
  return plaintext;
}

// Takes salt and iv as seal does.
export function sealMessage(generation, dataKey, associated, salt, iv, plaintext) {
  const encoded = checkMessageArguments(dataKey, associated);
  if (generation < 1 || plaintext.length > 1048576) throw invalid();
  const header = Buffer.concat([Buffer.of(129, 1), u32(generation)]);
  const {info, key, commitment} = derive(dataKey, salt, header, encoded, MESSAGE_LABEL);
  const gcm = createCipheriv('aes-256-gcm', key, iv, {authTagLength: 16});
  const ciphertext = Buffer.concat([gcm.update(plaintext), gcm.final()]);
  return {info, key, commitment, message: Buffer.concat([header, salt, commitment, iv, ciphertext, gcm.getAuthTag()])};
}

// What follows runs the vectors.

const hex = (string) => Buffer.from(string, 'hex');
const keyOf = (k) => ({keyId: hex(k.keyId.replaceAll('-', '')), keyVersion: k.keyVersion, materialId: hex(k.materialId)});
const associatedOf = (v) => ({context: v.context, raw: v.raw === undefined ? undefined : hex(v.raw)});
const same = (what, got, want) => {
  if (got.toString('hex') !== want) throw new Error(`${what}: got ${got.toString('hex')}, want ${want}`);
};

// A vector without a caller is opened by a caller that holds the key of its header.
function callerOf(v, blob) {
  if (v.caller) return keyOf(v.caller);
  return {keyId: blob.subarray(3, 19), keyVersion: blob.length < 23 ? 0 : blob.readUInt32BE(19), materialId: blob.subarray(23, 39)};
}

function refusal(f) {
  try {
    f();
  } catch (e) {
    if (e instanceof Refused) return e.message;
    throw e;
  }
  return 'nothing: it opened';
}

const tests = {
  good(v) {
    const header = {kind: v.header.kind, ...keyOf(v.header), namespace: '', name: '', generation: 0, ...v.header.scope};
    const blob = hex(v.blob), material = hex(v.material), associated = associatedOf(v);
    same('plaintext', open(blob, material, associated, header), v.plaintext);

    const steps = seal(header, material, associated, hex(v.salt), hex(v.iv), hex(v.plaintext));
    for (const step of ['info', 'key', 'commitment', 'blob']) same(step, steps[step], v[step]);

    if (blob.length > 600 || steps.info.length > 600) return; // more of the same, slowly
    refusesChanges(blob, (changed) => open(changed, material, associated, changed.length < blob.length ? header : callerOf({}, changed)));
  },
  bad(v) {
    const blob = hex(v.blob);
    const got = refusal(() => open(blob, hex(v.material), associatedOf(v), callerOf(v, blob)));
    if (got !== v.error) throw new Error(`refused with ${got}, want ${v.error}`);
  },
  invalid(v) {
    const got = refusal(() => encodeAssociated(associatedOf(v)));
    if (got !== 'invalid argument') throw new Error(`refused with ${got}, want invalid argument`);
  },
  goodMessages(v) {
    const message = hex(v.message), dataKey = hex(v.dataKey), associated = associatedOf(v);
    same('plaintext', openMessage(message, dataKey, associated), v.plaintext);
    if (parseMessage(message).generation !== v.generation) throw new Error('another generation');

    const steps = sealMessage(v.generation, dataKey, associated, hex(v.salt), hex(v.iv), hex(v.plaintext));
    for (const step of ['info', 'key', 'commitment', 'message']) same(step, steps[step], v[step]);

    if (message.length > 600 || steps.info.length > 600) return;
    refusesChanges(message, (changed) => openMessage(changed, dataKey, associated));
  },
  badMessages(v) {
    const message = Buffer.concat([hex(v.message), Buffer.alloc(v.zeros ?? 0)]);
    const got = refusal(() => openMessage(message, hex(v.dataKey), associatedOf(v)));
    if (got !== v.error) throw new Error(`refused with ${got}, want ${v.error}`);
  },
  invalidMessages(v) {
    const seals = refusal(() => sealMessage(1, hex(v.dataKey), associatedOf(v), Buffer.alloc(32), Buffer.alloc(12), Buffer.alloc(0)));
    if (seals !== 'invalid argument') throw new Error(`refused with ${seals}, want invalid argument`);
    const opens = refusal(() => openMessage(Buffer.alloc(0), hex(v.dataKey), associatedOf(v)));
    if (opens !== 'invalid argument') throw new Error(`refused with ${opens}, want invalid argument`);
  },
};

// Flips every bit and cuts to every length.
function refusesChanges(bytes, open) {
  if (!flip) return;
  for (let bit = 0; bit < 8 * bytes.length; bit++) {
    const flipped = Buffer.from(bytes);
    flipped[bit >> 3] ^= 1 << (bit & 7);
    const want = bit < 16 ? 'not mine' : 'broken';
    const got = refusal(() => open(flipped));
    if (got !== want) throw new Error(`bit ${bit} flipped: refused with ${got}, want ${want}`);
  }
  for (let length = 0; length < bytes.length; length++) {
    const got = refusal(() => open(bytes.subarray(0, length)));
    if (got !== 'broken') throw new Error(`cut to ${length} bytes: refused with ${got}, want broken`);
  }
}

function run(list, v) {
  try {
    tests[list](v);
    return {list, name: v.name, failure: null};
  } catch (e) {
    return {list, name: v.name, failure: e instanceof Refused ? `refused: ${e.message}` : String(e.message)};
  }
}

const vectors = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const flip = process.argv[3] === 'flip';
console.log(JSON.stringify(Object.entries(vectors).flatMap(([list, all]) => all.map((v) => run(list, v)))));
