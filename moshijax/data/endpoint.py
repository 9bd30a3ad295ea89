"""Requests to HTTP end-points of the OpenAI style, with retries, a time limit, and errors that say what to do.

Each kind of end-point has a module of its own: speech (`moshijax.data.synthesis.remote`), and chats
(`moshijax.data.scripts.generators`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from moshijax import optional
from moshijax.annotations import shown
from moshijax.errors import ConfigError, DataError, MoshijaxError, require

_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
_REFUSED, _ABSENT, _BAD_REQUEST = (401, 403), (404, 405), (400, 413, 422)
_CONNECT_SECONDS, _LONGEST_WAIT = 10.0, 30.0


@dataclass(frozen=True)
class Endpoint:
    """Where requests go, and how long they are tried.

    Attributes:
      url: that paths are added to, such as "http://localhost:8000/v1".
      key: name of the environment variable that holds the API key; "": none is sent. The key itself is in no file.
      seconds: that a reply may take.
      retries: of a request that is not answered, or answered with 429 or 5xx; the waits double from half a second, or
        are what the server asks for.
    """

    url: str
    key: str = ""
    seconds: float = 120.0
    retries: int = 5

    def __post_init__(self) -> None:
        good = re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", self.url)
        require(bool(good), f"end-point {self.url!r}: write its URL, such as http://localhost:8000/v1")
        require(self.seconds > 0, f"seconds is {self.seconds}: it must be above 0")
        require(self.retries >= 0, f"retries is {self.retries}: use 0 or more")

    def headers(self) -> dict[str, str]:
        """Return the headers of a request.

        Raises:
          ConfigError: the variable of the key is not set.
        """
        if not self.key:
            return {}
        require(bool(os.environ.get(self.key)), f"the variable {self.key}, which is to hold a key, is not set: set it")
        return {"Authorization": f"Bearer {os.environ[self.key]}"}

    def post(self, path: str, body: dict[str, Any]) -> bytes:
        """Send a JSON body and return the content of the reply.

        Raises:
          ConfigError: the key is refused, or there is no such path or model.
          DataError: the server refuses this body; others may be fine.
          MoshijaxError: there is no reply after all retries; or a package is missing.
        """
        urllib3 = optional.load("urllib3")
        url = f"{self.url.rstrip('/')}/{path}"
        retries = urllib3.Retry(
            self.retries, backoff_factor=0.5, backoff_max=_LONGEST_WAIT, status_forcelist=_RETRIED,
            allowed_methods=None, raise_on_status=False,
        )  # fmt: skip
        limits = urllib3.Timeout(connect=_CONNECT_SECONDS, read=self.seconds)
        try:
            with urllib3.PoolManager() as pool:
                reply = pool.request(
                    "POST", url, json=body, headers=self.headers(), timeout=limits, retries=retries, redirect=False
                )
        except urllib3.exceptions.HTTPError as error:
            cause = getattr(error, "reason", None) or error
            raise MoshijaxError(
                f"{url} gave no reply in {self.retries + 1} tries ({_plain(cause)}): check that the server runs, or "
                "allow more time; the same command resumes from here"
            ) from None
        if reply.status == 200:
            return reply.data
        said = f"{url} answered {reply.status}, {_message(reply.data)}"
        if reply.status in _REFUSED:
            raise ConfigError(f"{said}: check the key (in {self.key or 'no variable'})")
        if reply.status in _ABSENT:
            raise ConfigError(f"{said}: check the URL and the model's name")
        if reply.status in _BAD_REQUEST:
            raise DataError(f"{said}: change the text, or the settings of the model")
        raise MoshijaxError(f"{said}, also after {self.retries} retries: try again later with the same command")


def _plain(error: Any) -> str:
    """Return what went wrong, without the objects that urllib3 names."""
    return re.sub(r"^.*?(object at 0x\w+>|[\w.]+\(host=[^)]*\)): ", "", str(error)) or type(error).__name__


def _message(content: bytes) -> str:
    text = content.decode(errors="replace").strip()
    found = re.search(r'"(?:message|detail)"\s*:\s*"((?:[^"\\]|\\.)*)"', text)
    return shown(found[1] if found else text) if text else "without a reason"
