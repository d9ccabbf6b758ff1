"""A real S3 server over HTTP on this machine, and a proxy before it that fails when it is told to."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"
REGION = "us-east-1"
BUCKET = "bucket"


class S3Server:
    """moto's S3 server with one bucket; ``objects`` looks into it, past any proxy."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        lock, serve = threading.Lock(), DomainDispatcherApplication(create_backend_app)

        def serve_alone(environ: dict[str, object], start_response: Callable[..., object]) -> Iterable[bytes]:
            with lock:  # moto reads tag and content of an object from one stream, and locks it for the content alone
                return serve(environ, start_response)

        self._server = make_server(HOST, 0, serve_alone, threaded=True, request_handler=MotoRequestHandler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
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
        self._server.shutdown()
        self._thread.join()  # it closes its socket itself


Fails = Callable[[int, str, str], int | None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], target_port: int, fails: Fails) -> None:
        self.target_port, self.fails = target_port, fails
        self.requests: list[str] = []
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self._body()
        self.server.requests.append(f"{self.command} {self.path}")
        status = self.server.fails(len(self.server.requests), self.command, self.path)
        if status is not None:
            code = "AccessDenied" if status == 403 else "SlowDown"
            content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self._answer(status, [("Content-Type", "application/xml")], content)
            return
        target = http.client.HTTPConnection(HOST, self.server.target_port, timeout=30)
        replaced = ("transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in replaced}
        target.request(self.command, self.path, body=body, headers=headers | {"Content-Length": str(len(body))})
        answer = target.getresponse()
        self._answer(answer.status, answer.getheaders(), answer.read())
        target.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(parts)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        known = {name.lower(): value for name, value in headers} | {"content-length": str(len(content))}
        if self.command == "HEAD":  # it tells the length of what it does not send
            known["content-length"] = next((value for name, value in headers if name.lower() == "content-length"), "0")
        for name, value in known.items():
            if name not in ("transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Proxy:
    """Passes requests on to ``target``, except where ``fails(number, method, path)`` gives a status to answer with."""

    def __init__(self, target_port: int, fails: Fails) -> None:
        self._server = _Server((HOST, 0), target_port, fails)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def requests(self) -> list[str]:
        """Every request so far: method and path."""
        return self._server.requests

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
