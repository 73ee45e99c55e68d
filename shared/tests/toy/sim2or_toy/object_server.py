"""An S3 server on loopback, as a process: the one of moto, with real HTTP, signatures and rights."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config

from sim2or_toy.bench import until

BUCKET = "sim2or"
REGION = "us-east-1"
SETUP_ACTIONS = 4
"""Bucket, user, key and policy are made before rights are asked for."""


@dataclass
class ObjectServer:
    """A server with one bucket.

    Attributes:
        port: Where it listens.
        key_id: Whose key it knows.
        secret: That key.
    """

    port: int
    key_id: str = "testing"
    secret: str = "testing"

    @property
    def url(self) -> str:
        """Its address over HTTP."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """What a process needs to use it."""
        return self.through(self.port)

    def through(self, port: int) -> dict[str, str]:
        """What a process needs to use it over another port, of a proxy."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    def client(self, service: str = "s3") -> Any:
        """A client of the library that tests it, not of ours."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=self.key_id,
            aws_secret_access_key=self.secret,
            config=Config(retries={"max_attempts": 1}),
        )

    def names(self, prefix: str = "") -> list[str]:
        """The names of the objects in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def read(self, name: str) -> bytes:
        """An object's bytes."""
        data: bytes = self.client().get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return data

    def write(self, name: str, data: bytes) -> None:
        """Overwrites an object."""
        self.client().put_object(Bucket=BUCKET, Key=name, Body=data)


@contextlib.contextmanager
def object_server(*, rights: bool = False) -> Iterator[ObjectServer]:
    """Starts a server and makes its bucket.

    Args:
        rights: Whether it checks signatures and what a key may do.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    if rights:
        environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(SETUP_ACTIONS)
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=environment,
            stdout=told,
            stderr=told,
        )
        try:
            server = ObjectServer(port)
            until(lambda: process.poll() is not None or _listens(port), "object server")
            server.client().create_bucket(Bucket=BUCKET)
            if rights:
                _make_user(server)
            yield server
        finally:
            process.kill()
            process.wait()


def _make_user(server: ObjectServer) -> None:
    iam = server.client("iam")
    iam.create_user(UserName="worker")
    key = iam.create_access_key(UserName="worker")["AccessKey"]
    allowed = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:GetObject", "s3:PutObject"],
        "Resource": "*",
    }
    policy = {"Version": "2012-10-17", "Statement": [allowed]}
    iam.put_user_policy(UserName="worker", PolicyName="mirror", PolicyDocument=json.dumps(policy))
    server.key_id, server.secret = key["AccessKeyId"], key["SecretAccessKey"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
