"""A real S3 server over HTTP on this machine, and a proxy before it that fails when it is told to."""

from __future__ import annotations

import http.client
import logging
import random
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
REGION = "us-east-1"
BUCKET = "bucket"


def free_port() -> int:
    """Return a free port below 10000: from there on they belong to Ray's workers."""
    for port in random.sample(range(4000, 10000), 200):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port below 10000")


class S3Server:
    """moto's S3 server with one bucket; ``objects`` looks into it, past any proxy."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port = free_port()
        self._server = ThreadedMotoServer(ip_address=HOST, port=self.port, verbose=False)
        self._server.start()
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def client(self):
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="y"
        )

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Return key -> size of every object that is no marker of a directory."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"]: entry["Size"] for entry in found if not entry["Key"].endswith("/")}

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def stop(self) -> None:
        self._server.stop()


class Proxy:
    """Passes requests on to ``target``, except where ``fails(number, method, path)`` gives a status to answer with."""

    def __init__(self, target_port: int, fails: Callable[[int, str, str], int | None]) -> None:
        self.requests: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def _pass_on(self) -> None:
                body = self._body()
                proxy.requests.append(f"{self.command} {self.path}")
                status = fails(len(proxy.requests), self.command, self.path)
                if status is not None:
                    code = "AccessDenied" if status == 403 else "SlowDown"
                    content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                    return self._answer(status, [("Content-Type", "application/xml")], content)
                target = http.client.HTTPConnection(HOST, target_port, timeout=30)
                skipped = ("transfer-encoding", "content-length")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
                target.request(self.command, self.path, body=body, headers=headers | {"Content-Length": str(len(body))})
                answer = target.getresponse()
                content = answer.read()
                self._answer(answer.status, answer.getheaders(), content)
                target.close()
                return None

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

            def _body(self) -> bytes:
                if self.headers.get("Expect", "").lower() == "100-continue":
                    pass  # the base class has answered that already
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    while self.rfile.readline().strip():
                        pass
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                has_length = False
                for name, value in headers:
                    if name.lower() in ("transfer-encoding", "connection", "server", "date"):
                        continue
                    has_length |= name.lower() == "content-length"
                    self.send_header(name, value)
                if not has_length:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        self.port = free_port()
        self._server = ThreadingHTTPServer((HOST, self.port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
