"""Headless Chromium for the tests of pages, driven through its DevTools protocol over a pipe."""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--hide-scrollbars"),
    *("--remote-debugging-pipe", "--window-size=1320,1000"),
)
#: WebGL on the CPU, and none at all.
WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")
PATIENCE_S = 60.0


def find_chromium() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab; `requests`, `messages` and `errors` collect what it asks for and reports."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int) -> None:
        self._process, self._read, self._write = process, read, write
        self._buffer, self._number, self._answers = b"", 0, {}
        self._session: str | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(read, selectors.EVENT_READ)
        self.requests: list[str] = []
        self.messages: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE_S
        while self._number not in self._answers:
            self._listen(end)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, answer
        return answer["result"]

    def _listen(self, end: float) -> None:
        assert time.monotonic() < end, "Chromium does not answer"
        if not self._selector.select(timeout=1.0):
            return
        self._buffer += os.read(self._read, 1 << 20)
        *whole, self._buffer = self._buffer.split(b"\0")
        for text in whole:
            self._take(json.loads(text))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, params = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            words = [str(a.get("value", a.get("description"))) for a in params["args"]]
            self.messages.append(f"{params['type']}: {' '.join(words)}")
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", details["text"])
            self.messages.append(f"exception: {thrown}")
        elif method == "Log.entryAdded":
            self.messages.append(f"{params['entry']['level']}: {params['entry']['text']}")

    def open(self, file: Path) -> float:
        """Open a file and return the seconds until its script has drawn it."""
        began = time.monotonic()
        self.call("Page.navigate", url=file.as_uri())
        self.wait("document.body?.dataset.ready === 'yes'")
        return time.monotonic() - began

    def evaluate(self, expression: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}; {self.messages}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        code = {"ArrowUp": 38, "ArrowDown": 40, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}.get(key)
        text = {} if len(key) > 1 else {"text": key}
        for kind in ("keyDown", "keyUp"):
            more = {} if code is None else {"windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text, **more)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        twice = "new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(1))))"
        self.evaluate(twice)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Page]:
    """Start Chromium with a profile in `folder` and yield a tab."""
    program = find_chromium()
    assert program is not None
    to_child, write = os.pipe()
    read, from_child = os.pipe()

    def fds() -> None:
        # The protocol's pipe is on the descriptors 3 and 4.
        first, second = os.dup(to_child), os.dup(from_child)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        [program, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=fds,
        close_fds=False,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(process, read, write)
    finally:
        with suppress(OSError):
            os.write(write, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(read)
        os.close(write)
