"""A headless Chromium, driven over its debugging pipe: no driver and no library needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from waiting import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome")
PLUMB = "import os, sys as s; os.dup2(int(s.argv[1]), 3); os.dup2(int(s.argv[2]), 4); os.execv(s.argv[3], s.argv[3:])"


def chromium() -> str | None:
    """The browser's path, None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab; what its console and its policy said is in `said`."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self.reader, self.writer = reader, writer
        self.number, self.session = 0, ""
        self.said: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command's result; events that come first are kept."""
        self.number += 1
        head = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": params, **head}
        self.writer.write(json.dumps(message).encode() + b"\0")
        self.writer.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def wait(self, event: str) -> None:
        """Until an event comes."""
        while self._read().get("method") != event:
            pass

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.reader.read(1)) != b"\0":
            assert byte, "the browser went away"
            text += byte
        found: dict[str, Any] = json.loads(text)
        if found.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(json.dumps(found["params"]))
        return found

    def open(self, page: Path, **size: int) -> None:
        """Load a file and wait until its scripts have run."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        if size:
            self.call("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **size)
        self.call("Page.navigate", url=page.as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What an expression is on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def hover(self, selector: str) -> None:
        """Put the mouse on the middle of an element's first line."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{where}.scrollIntoView({{block: 'center'}})")
        x, y = self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({where}.getClientRects()[0])")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)


def ended(process: psutil.Process) -> bool:
    """Whether a process runs no more; who started it may not have asked for its exit status."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that ends with the block."""
    path = chromium()
    assert path is not None
    (command_read, command_write), (answer_read, answer_write) = os.pipe(), os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
    with TemporaryDirectory() as home:
        words = [sys.executable, "-c", PLUMB, str(command_read), str(answer_write), path, *flags]
        process = subprocess.Popen(
            [*words, f"--user-data-dir={home}", "about:blank"],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        with os.fdopen(answer_read, "rb") as reader, os.fdopen(command_write, "wb") as writer:
            try:
                yield Browser(reader, writer)
            finally:
                # All of its processes write into `home`, which could not be removed beside one that still runs.
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                for each in family:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
                wait_until(lambda: all(map(ended, family)), "the end of Chromium")
                process.wait()
