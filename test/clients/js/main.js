// Calls AWS KMS with the AWS SDK and the AWS Encryption SDK, for tests of the sidecar's front door: main.js SOCKET.
//
// It reads calls from stdin, one a line and in the names of the service model, with bytes in base64, and answers each on stdout:
// {"operation": "Decrypt", "request": {"CiphertextBlob": "…"}} with {"response": {…}} or {"error": {…}}. Of the Encryption SDK it has the
// operations encrypt and decrypt, which begin with a small letter.
import http from 'node:http'
import { createInterface } from 'node:readline'
import { buildClient, CommitmentPolicy, getClient, KMS, KmsKeyringNode } from '@aws-crypto/client-node'
import * as kms from '@aws-sdk/client-kms'
import { NodeHttpHandler } from '@smithy/node-http-handler'

const options = {
  region: 'eu-central-1', endpoint: 'http://datakeys', credentials: { accessKeyId: 'any', secretAccessKey: 'any' }, maxAttempts: 1,
  requestHandler: new NodeHttpHandler({ httpAgent: new http.Agent({ keepAlive: true, socketPath: process.argv[2] }) }),
}
const client = new kms.KMSClient(options)
const encryptionSDK = buildClient(CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
const keyring = (keys) => new KmsKeyringNode({ clientProvider: getClient(KMS, options), ...keys })
const keysOf = ({ messageHeader }) => messageHeader.encryptedDataKeys.map((k) => k.providerInfo)

const operations = {
  async encrypt({ keys, plaintext, encryptionContext }) {
    const { result, ...made } = await encryptionSDK.encrypt(keyring(keys), plaintext, { encryptionContext })
    return { message: result, keys: keysOf(made) }
  },
  async decrypt({ keys, message }) {
    const opened = await encryptionSDK.decrypt(keyring(keys), message)
    return { plaintext: opened.plaintext, encryptionContext: opened.messageHeader.encryptionContext, keys: keysOf(opened) }
  },
}

const blobs = new Set(['CiphertextBlob', 'Plaintext', 'AttestationDocument', 'plaintext', 'message'])
const typed = (name, value) => blobs.has(name) ? Buffer.from(value, 'base64') : value
function plain(name, value) { // not an arrow: a Buffer has been made JSON by the time that it is the value
  return this[name] instanceof Uint8Array ? Buffer.from(this[name]).toString('base64') : value
}

for await (const line of createInterface({ input: process.stdin })) {
  const { operation, request } = JSON.parse(line)
  const members = JSON.parse(JSON.stringify(request), typed)
  let answer
  try {
    answer = { response: await (operations[operation]?.(members) ?? client.send(new kms[operation + 'Command'](members))) }
  } catch (error) {
    answer = { error: { code: error.name, class: error.constructor.name, message: error.message, status: error.$metadata?.httpStatusCode } }
  }
  console.log(JSON.stringify(answer, plain))
}
process.exit() // whatever its connections do
