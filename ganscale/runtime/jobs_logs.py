"""A job's log as whole lines while it grows. A dropped connection is taken up again: no line twice, none missing.

The server sends pieces of text, always from the beginning of the log; what was had already is skipped by counting
characters, which is exact because a log only grows.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from types import TracebackType

import aiohttp

from ganscale.errors import ResourceError, RunFailed
from ganscale.runtime.jobs_server import CONNECT_S, JobServer

HEARTBEAT_S = 15.0  # a connection that died without a word is noticed by its unanswered ping
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)  # before each new attempt, the last one repeated
PATIENCE_S = 120.0  # without any answer, until the follower gives up; the job itself goes on


class Lines:
    """Turns pieces of text into whole lines."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, piece: str) -> list[str]:
        """Take a piece; returns the lines that it completes."""
        *lines, self._rest = (self._rest + piece).split("\n")
        return lines

    def rest(self) -> list[str]:
        """Return the last line where it has no end."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []


def follow(server: JobServer, job_id: str, *, patience_s: float = PATIENCE_S) -> Iterator[str]:
    """Yield the lines of a job's log, from the first to the last, as they come; ends when the job has ended.

    Raises UserError where there is no such job, RunFailed after ``patience_s`` without the cluster.
    """
    server.job(job_id)  # an unknown job, a wrong token: refused in words before anything is opened
    lines, had, attempt, heard = Lines(), 0, 0, time.monotonic()
    while True:
        skip = had
        with _Connection(server, job_id) as pieces:
            for piece in pieces:
                new = piece[skip:]
                skip -= len(piece) - len(new)
                had += len(new)
                if new:
                    attempt = 0
                yield from lines.feed(new)
        try:
            if server.job(job_id).has_ended:
                yield from lines.feed(server.logs(job_id)[had:])  # what a connection cut at the end did not bring
                yield from lines.rest()
                return
            heard = time.monotonic()
        except ResourceError as error:
            if time.monotonic() - heard > patience_s:
                words = f"lost the cluster: {error}; the job goes on without us: ganscale logs -f {job_id}"
                raise RunFailed(words) from None
        time.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
        attempt += 1


class _Connection:
    """A context and an iterator of what one connection brings until it ends, for whatever reason.

    A thread of its own reads, so that Ctrl-C never finds a coroutine half-way: there it would leave one that nobody
    awaits, with a warning of Python's.
    """

    def __init__(self, server: JobServer, job_id: str) -> None:
        self._server, self._job_id = server, job_id
        self._pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._left = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="follow-log", daemon=True)

    def __enter__(self) -> Iterator[str]:
        self._thread.start()
        return self._received()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the connection has ended, and its loop is closed
            self._loop.call_soon_threadsafe(self._left.set)
        self._thread.join()

    def _received(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def _run(self) -> None:
        with contextlib.closing(self._loop) as loop:
            self._pieces.put(loop.run_until_complete(self._read_until_left()))

    async def _read_until_left(self) -> Exception | None:
        reading, leaving = asyncio.ensure_future(self._read()), asyncio.ensure_future(self._left.wait())
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()
        leaving.cancel()
        end, _ = await asyncio.gather(reading, leaving, return_exceptions=True)
        return end if isinstance(end, Exception) else None

    async def _read(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async for piece in _receive(self._server, self._job_id):
                self._pieces.put(piece)


async def _receive(server: JobServer, job_id: str) -> AsyncGenerator[str, None]:
    url = f"{server.url}/api/jobs/{job_id}/logs/tail"
    timeout = aiohttp.ClientTimeout(sock_connect=CONNECT_S)
    async with aiohttp.ClientSession(headers=server.headers, timeout=timeout) as session:
        # never closed politely: the server reads no closing frame while it sends, so that one would wait for the job
        socket = await session.ws_connect(url, heartbeat=HEARTBEAT_S, max_msg_size=0)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                yield message.data
