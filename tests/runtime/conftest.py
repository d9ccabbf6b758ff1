"""A real S3 server that the tests of a session share, and ways to reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stores import REGION, Proxy, S3Server


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    """An S3 server on this machine."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def address(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point the client to the server; returns a function that points it elsewhere."""

    def point_to(url: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)

    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    point_to(server.url)
    return point_to


@pytest.fixture
def through(server: S3Server, address) -> Iterator[Callable[..., Proxy]]:
    """Return a function that puts a failing proxy before the server and returns it."""
    proxies = []

    def put_proxy(fails) -> Proxy:
        proxies.append(Proxy(server.port, fails))
        address(proxies[-1].url)
        return proxies[-1]

    yield put_proxy
    for proxy in proxies:
        proxy.stop()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a function that moves this process to another machine: to a cache of its own, which it returns."""

    def move_to(name: str) -> Path:
        monkeypatch.setenv("GANSCALE_CACHE", str(tmp_path / name))
        return tmp_path / name

    move_to("first")
    return move_to
