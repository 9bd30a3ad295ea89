"""A headless Chromium, told what to do over its DevTools pipe."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

#: Where the browser is; None where there is none.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Seconds that anything a test waits for may take; nothing is measured by it.
PATIENCE = 60.0
FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--mute-audio",
    "--remote-debugging-pipe",
)


def require() -> None:
    """Skip a test where there is no browser; where tests run for everybody, that is a failure."""
    if CHROMIUM is None:
        absent = "no Chromium here: install the package chromium of your system"
        if os.environ.get("CI") == "true":
            pytest.fail(absent)
        pytest.skip(absent)


def microphone(wav: Path) -> tuple[str, ...]:
    """Return the flags of a browser whose microphone plays a file again and again."""
    return "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={wav}"


class Browser:
    """One process. Commands and answers are JSON texts that end in a zero byte, on its file descriptors 3 and 4."""

    def __init__(self, profile: Path, flags: Sequence[str] = ()):
        (read, self._write), (self._read, write) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]  # 3 and 4 may be in use here
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "chromium", CHROMIUM]
            + [*FLAGS, *sandbox, *flags, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (read, write, *ends):
            os.close(end)
        self._number, self._received = 0, b""
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError, EOFError):
            self.call("Browser.close")
        self._process.wait(timeout=PATIENCE)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Run a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._read], [], [], PATIENCE)[0], "the browser does not answer"
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise EOFError("the browser is gone")
            self._received += piece
        answer, _, self._received = self._received.partition(b"\0")
        return json.loads(answer)

    @contextlib.contextmanager
    def page(
        self, address: str, before: str = "", size: tuple[int, int] = (1280, 800), dark: bool = False
    ) -> Iterator[Page]:
        """Open an address in a tab, with a profile of its own.

        Args:
          address: what to open.
          before: a script that runs before those of the page.
          size: of the window, in CSS pixels; narrow ones are phones.
          dark: the colour scheme.
        """
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, context)
        try:
            for domain in ("Page", "Runtime", "Network", "Log"):
                page.call(f"{domain}.enable")
            page.look(size, dark)
            page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
            answer = page.call("Page.navigate", url=address)
            assert "errorText" not in answer, f"{address}: {answer['errorText']}"
            page.wait_for("document.readyState === 'complete'")
            yield page
        finally:
            self.call("Target.disposeBrowserContext", browserContextId=context)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str, context: str):
        self.browser, self.session, self.context = browser, session, context

    def allow_microphone(self, address: str, allow: bool = True) -> None:
        """Answer the question for the microphone, which comes from a page of this address."""
        self.browser.call(
            "Browser.setPermission",
            permission={"name": "microphone"},
            setting="granted" if allow else "denied",
            origin=address,
            browserContextId=self.context,
        )

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Run a command of this tab."""
        return self.browser.call(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; of a promise, what it becomes."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + PATIENCE
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"waited in vain for {expression}; the page says: {self.text('body')}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """Return what is to be read in an element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """Click on an element, as a user does."""
        self.wait_for(f"!document.querySelector({json.dumps(selector)}).disabled")
        x, y = self.evaluate(
            f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])"
            f"((e => (e.scrollIntoView({{block: 'nearest'}}), e))(document.querySelector({json.dumps(selector)}))"
            f".getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def look(self, size: tuple[int, int], dark: bool = False) -> None:
        """Change the size of the window and the colour scheme."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 600
        )
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        """Write what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def download(self, selector: str, folder: Path) -> Path:
        """Click on what saves a file, and return the file, which comes into a new folder."""
        folder.mkdir(parents=True)
        self.browser.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), browserContextId=self.context
        )
        self.click(selector)
        end = time.monotonic() + PATIENCE
        while not (files := [path for path in folder.iterdir() if path.suffix != ".crdownload"]):
            assert time.monotonic() < end, f"{selector} saves nothing"
            time.sleep(0.05)
        return files[0]

    def requests(self) -> list[str]:
        """Return the addresses that this tab has asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """Return errors that nobody caught, and what the console shows as errors."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found
