// Uses a sidecar's socket with the AWS SDK and the AWS Encryption SDK: main.js SOCKET KEY-ARN ALIAS.
import assert from 'node:assert/strict'
import http from 'node:http'
import { buildClient, CommitmentPolicy, getClient, KMS, KmsKeyringNode } from '@aws-crypto/client-node'
import * as kms from '@aws-sdk/client-kms'
import { NodeHttpHandler } from '@smithy/node-http-handler'

const [socketPath, arn, alias] = process.argv.slice(2)
const agent = new http.Agent({ keepAlive: true, socketPath })
const options = {
  region: 'eu-central-1', endpoint: 'http://datakeys', credentials: { accessKeyId: 'any', secretAccessKey: 'any' }, maxAttempts: 1,
  requestHandler: new NodeHttpHandler({ httpAgent: agent }),
}
const same = (a, b) => assert.ok(Buffer.from(a).equals(Buffer.from(b)), 'it opens to something else')

const client = new kms.KMSClient(options)
const EncryptionContext = { tenant: 'ä', app: 'b' }
const made = await client.send(new kms.GenerateDataKeyCommand({ KeyId: alias, KeySpec: 'AES_256', EncryptionContext }))
const opened = await client.send(new kms.DecryptCommand({ CiphertextBlob: made.CiphertextBlob, EncryptionContext }))
same(opened.Plaintext, made.Plaintext)
assert.equal(opened.KeyId, arn)
await assert.rejects(client.send(new kms.DecryptCommand({ CiphertextBlob: made.CiphertextBlob })), kms.InvalidCiphertextException)
await assert.rejects(client.send(new kms.DescribeKeyCommand({ KeyId: 'alias/none' })), kms.NotFoundException)

const { encrypt, decrypt } = buildClient(CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)
const keyring = new KmsKeyringNode({ clientProvider: getClient(KMS, options), generatorKeyId: arn, keyIds: [arn] })
const { result } = await encrypt(keyring, 'hello', { encryptionContext: { tenant: 'a' } })
const { plaintext, messageHeader } = await decrypt(keyring, result)
same(plaintext, Buffer.from('hello'))
assert.equal(messageHeader.encryptionContext.tenant, 'a')
assert.equal(messageHeader.encryptedDataKeys.length, 2)
result[result.length - 1] ^= 1
await assert.rejects(decrypt(keyring, result))
agent.destroy()
