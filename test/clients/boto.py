"""Uses a sidecar's front door with boto3: boto.py ENDPOINT KEY-ARN ALIAS. Prints nothing when all is as it should be."""

import sys

import boto3
from botocore.config import Config

endpoint, arn, alias = sys.argv[1:]
kms = boto3.client(
    "kms",
    endpoint_url=endpoint,
    region_name="eu-central-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"total_max_attempts": 1}),
)
pairs = {"tenant": "ä", "app": "b c"}
failed = []


def expect(what, holds):
    if not holds:
        failed.append(what)


def opens(what, blob, plaintext, context):
    opened = kms.decrypt(CiphertextBlob=blob, EncryptionContext=context, KeyId=arn)
    expect(what, opened["KeyId"] == arn and (plaintext is None or opened["Plaintext"] == plaintext))


def refuses(exception, call, **members):
    try:
        call(**members)
    except getattr(kms.exceptions, exception):
        return
    except kms.exceptions.ClientError as error:
        failed.append(f"{error.response['Error']['Code']} instead of {exception}")
    else:
        failed.append(f"no {exception}")


made = kms.generate_data_key(KeyId=alias, KeySpec="AES_256", EncryptionContext=pairs)
opens("GenerateDataKey", made["CiphertextBlob"], made["Plaintext"], pairs)
hidden = kms.generate_data_key_without_plaintext(KeyId=arn, NumberOfBytes=48)
opens("GenerateDataKeyWithoutPlaintext", hidden["CiphertextBlob"], None, {})
expect("no plaintext", "Plaintext" not in hidden)
pair = kms.generate_data_key_pair(KeyId=alias, KeyPairSpec="ECC_NIST_P256", EncryptionContext=pairs)
opens("GenerateDataKeyPair", pair["PrivateKeyCiphertextBlob"], pair["PrivateKeyPlaintext"], pairs)
hidden = kms.generate_data_key_pair_without_plaintext(KeyId=alias, KeyPairSpec="ECC_NIST_P256")
opens("GenerateDataKeyPairWithoutPlaintext", hidden["PrivateKeyCiphertextBlob"], None, {})
sealed = kms.encrypt(KeyId=alias, Plaintext=b"hello", EncryptionContext=pairs)
opens("Encrypt", sealed["CiphertextBlob"], b"hello", pairs)
again = kms.re_encrypt(
    CiphertextBlob=sealed["CiphertextBlob"],
    SourceEncryptionContext=pairs,
    DestinationKeyId=alias,
    DestinationEncryptionContext={"tenant": "b"},
)
opens("ReEncrypt", again["CiphertextBlob"], b"hello", {"tenant": "b"})
expect("GenerateRandom", len(kms.generate_random(NumberOfBytes=1024)["Plaintext"]) == 1024)
expect("DescribeKey", kms.describe_key(KeyId=alias)["KeyMetadata"]["Arn"] == arn)
keys = [k["KeyArn"] for page in kms.get_paginator("list_keys").paginate() for k in page["Keys"]]
expect("ListKeys", keys == [arn])
aliases = [a["AliasName"] for page in kms.get_paginator("list_aliases").paginate() for a in page["Aliases"]]
expect("ListAliases", aliases == [alias])

refuses("InvalidCiphertextException", kms.decrypt, CiphertextBlob=made["CiphertextBlob"])
refuses("NotFoundException", kms.describe_key, KeyId="alias/none")
refuses("InvalidGrantTokenException", kms.encrypt, KeyId=alias, Plaintext=b"a", GrantTokens=["a-token"])
refuses("UnsupportedOperationException", kms.disable_key, KeyId=arn)

sys.exit("boto3: " + ", ".join(failed) if failed else 0)
