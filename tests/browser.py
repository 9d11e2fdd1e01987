"""Headless Chromium for tests of pages, driven through its debugging pipe."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import deque
from typing import Any

import matplotlib.image
import numpy as np

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
_PATIENCE = 180  # s, for an answer: machines that run tests are busy


class Page:
    """A tab, as a context manager. Attributes: errors (texts) and requests (addresses) so far."""

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.width, self.height, self.dark = width, height, dark
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._count = 0
        self._session: str | None = None
        self._waiting: deque[bytes] = deque()
        self._rest = b""

    def __enter__(self) -> Page:
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

        def pipes() -> None:  # Chromium reads from 3 and writes to 4
            os.dup2(to_browser, 103)
            os.dup2(from_browser, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--remote-debugging-pipe",
                "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-first-run",
                f"--user-data-dir={self._profile.name}", "about:blank",
            ],
            preexec_fn=pipes, pass_fds=(3, 4, to_browser, from_browser),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._from, False)
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")
        self(
            "Emulation.setDeviceMetricsOverride",
            width=self.width,
            height=self.height,
            deviceScaleFactor=1,
            mobile=self.width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            answer = self._next()
            if answer is None:
                time.sleep(0.01)
            elif answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
        raise TimeoutError(f"no answer to {method} within {_PATIENCE} s")

    def _next(self) -> dict[str, Any] | None:
        """The next message of the browser, noted if it is an event."""
        try:
            while chunk := os.read(self._from, 1 << 20):
                *whole, self._rest = (self._rest + chunk).split(b"\0")
                self._waiting += whole
        except BlockingIOError:
            pass
        if not self._waiting:
            return None
        message = json.loads(self._waiting.popleft())
        about = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(about["exceptionDetails"]))
            case "Log.entryAdded" if about["entry"]["level"] == "error":
                self.errors.append(about["entry"]["text"])
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning"):
                self.errors.append(json.dumps(about["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
        return message

    def open(self, address: str) -> None:
        """Load a page, and wait until it has."""
        self("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def __getitem__(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self[expression]:
            assert time.monotonic() < end, f"never came true: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press and release a key on what has the focus."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, **text)

    def picture(self, whole: bool = False) -> bytes:
        """A screenshot (PNG) of what is in sight, or of the whole page."""
        taken = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])

    def pixels(self, selector: str) -> np.ndarray:
        """The pixels [rows, columns, 3], 0 to 1, of an element that is in sight."""
        box = f"JSON.stringify(document.querySelector('{selector}').getBoundingClientRect())"
        place = json.loads(self[box])
        left, top, right, bottom = (round(place[k]) for k in ("left", "top", "right", "bottom"))
        return matplotlib.image.imread(io.BytesIO(self.picture()))[top:bottom, left:right, :3]
