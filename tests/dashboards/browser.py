"""A real Chromium without a window, driven through its DevTools pipe: what a page looks like to who opens it.

Needs no package: the browser reads JSON from one inherited pipe and writes it to another, each message ended by NUL.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
READ_FD, WRITE_FD = 3, 4  # fixed by --remote-debugging-pipe
DEADLINE_S = 60


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    named = os.environ.get("GANSCALE_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page; ``events`` keeps all that it said unasked."""

    def __init__(self, process: subprocess.Popen, send_fd: int, receive_fd: int) -> None:
        self._process, self._send_fd, self._receive_fd = process, send_fd, receive_fd
        self._buffer, self._last_id, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; what comes in between is kept in ``events``."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send_fd, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str, *, width: int = 1280, height: int = 900, theme: str = "light") -> None:
        """Open ``url`` at a size in a colour scheme, and wait until it has loaded; earlier events are forgotten."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        for address in ("about:blank", url):  # first away: from #one to #other of a page nothing would load
            self.events.clear()
            self.call("Page.navigate", url=address)
            self.wait_for(lambda: any(event.get("method") == "Page.loadEventFired" for event in self.events))

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression on the page, by value; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key, as a person would."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def wait_for(self, holds: Any, *, within_s: float = DEADLINE_S) -> Any:
        """Return the first true value of ``holds()``; looked at again whenever the browser answers."""
        end = time.monotonic() + within_s
        while not (found := holds()):
            assert time.monotonic() < end, f"not so within {within_s} s; last events {self.events[-3:]}"
            time.sleep(0.02)
            self.call("Target.getTargets")  # of the browser, not of the page: that may just be leaving for the next
        return found

    def picture(self, path: Path, *, whole: bool = False) -> Path:
        """Save what is to be seen, or the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    @property
    def requests(self) -> list[str]:
        """Return the addresses that were asked for since ``open``."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    @property
    def complaints(self) -> list[str]:
        """Return errors and warnings of the console, and exceptions, since ``open``."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:300])
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
                found.append(json.dumps(params["args"])[:300])
        return found

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive_fd], [], [], DEADLINE_S)
            assert ready, f"the browser has said nothing for {DEADLINE_S} s"
            part = os.read(self._receive_fd, 1 << 20)
            assert part, f"the browser has ended with {self._process.poll()}"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def browser(*flags: str) -> Iterator[Browser]:
    """Start a browser and end it, with all it left on the disk."""
    program = find_browser()
    assert program, "no Chromium here"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        to_browser, from_us = os.pipe()
        to_us, from_browser = os.pipe()

        def hand_over() -> None:  # in the child: the two ends must have these very numbers
            copies = [fcntl.fcntl(end, fcntl.F_DUPFD, WRITE_FD + 1) for end in (to_browser, from_browser)]
            os.dup2(copies[0], READ_FD)
            os.dup2(copies[1], WRITE_FD)

        command = [program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--hide-scrollbars"]
        command += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}", *flags]
        process = subprocess.Popen(
            command,
            pass_fds=(READ_FD, WRITE_FD),
            preexec_fn=hand_over,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(process, from_us, to_us)
        finally:
            os.close(from_us)  # a browser whose pipe ends goes by itself
            os.close(to_us)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
