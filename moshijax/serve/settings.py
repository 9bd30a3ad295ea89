"""The settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moshijax.errors import require

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import numpy as np


@dataclass(frozen=True)
class Prompts:
    """What callers may ask for by name; nothing a caller sends is ever a path.

    Attributes:
      voices: {name: samples `[N]` at the artifact's rate}.
      texts: {name: what the model is told}.
    """

    voices: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Where a server listens, and what it allows.

    Attributes:
      host, port: where it listens; port 0 takes any free one.
      tls: the certificate, for https.
      token: what callers must know; None lets everybody in.
      origins: pages of other hosts that may call, such as https://example.org.
      proxied: requests come through a proxy, which names the caller's address in X-Forwarded-For.
      call_seconds: the longest call.
      idle_seconds: without any message of the caller, after which a call ends.
      stall_seconds: in which a caller takes nothing, after which a call ends.
      drain_seconds: that calls may continue after SIGTERM.
      message_bytes: the largest message.
      messages_per_second: of one caller, on average.
      text_prompt: characters, the longest.
      calls_per_minute: of one address.
      prompts: what callers may ask for by name.
    """

    host: str = "127.0.0.1"
    port: int = 8998
    tls: ssl.SSLContext | None = None
    token: str | None = None
    origins: tuple[str, ...] = ()
    proxied: bool = False
    call_seconds: float = 3600.0
    idle_seconds: float = 60.0
    stall_seconds: float = 10.0
    drain_seconds: float = 30.0
    message_bytes: int = 256 * 1024
    messages_per_second: float = 200.0
    text_prompt: int = 2000
    calls_per_minute: int = 60
    prompts: Prompts = Prompts()

    def __post_init__(self) -> None:
        for name in ("call_seconds", "idle_seconds", "stall_seconds", "message_bytes", "calls_per_minute"):
            require(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0")
        for origin in self.origins:
            scheme, _, host = origin.partition("://")
            good = scheme in ("http", "https") and host and not set(host) & set("/?#@ ")
            require(bool(good), f"origin {origin!r} must be a page's scheme and host alone, as in https://example.org")
        require(
            self.token is None or len(self.token) >= 8, "the token must have at least 8 characters; take a longer one"
        )
