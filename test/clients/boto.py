"""Calls AWS KMS with boto3, for tests of the sidecar's front door: boto.py ENDPOINT.

It reads calls from stdin, one a line and in the names of the service model, with bytes in base64, and answers each on stdout:
{"operation": "Decrypt", "request": {"CiphertextBlob": "…"}} with {"response": {…}} or {"error": {…}}.
"""

import base64
import json
import sys

import boto3
from botocore import xform_name
from botocore.config import Config

kms = boto3.client(
    "kms",
    endpoint_url=sys.argv[1],
    region_name="eu-central-1",
    aws_access_key_id="any",
    aws_secret_access_key="any",
    config=Config(retries={"total_max_attempts": 1}),
)


def typed(operation, request):
    """The members with bytes where the model has them."""
    members = kms.meta.service_model.operation_model(operation).input_shape.members
    return {name: base64.b64decode(value) if members[name].type_name == "blob" else value for name, value in request.items()}


def plain(value):
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def call(operation, request):
    try:
        return {"response": getattr(kms, xform_name(operation))(**typed(operation, request))}
    except kms.exceptions.ClientError as error:
        said, status = error.response["Error"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        return {"error": {"code": said["Code"], "class": type(error).__name__, "message": said["Message"], "status": status}}


for line in sys.stdin:
    print(json.dumps(call(**json.loads(line)), default=plain), flush=True)
