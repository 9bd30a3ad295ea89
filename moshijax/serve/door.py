"""Who may call: the token, the page's origin, and how often an address may try."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict

from aiohttp import web

from moshijax.serve.settings import Settings

ADDRESSES = 10_000  # that are remembered


def refusal(status: int, code: str, message: str, **more: object) -> web.Response:
    """Return an answer that says why there is no call."""
    return web.json_response({"error": {"code": code, "message": message, **more}}, status=status)


class Rate:
    """How often each address may do something.

    Args:
      most: times per minute, together or one by one.
    """

    def __init__(self, most: int):
        self.most = most
        self._addresses: OrderedDict[str, tuple[float, float]] = OrderedDict()  # times left, and when that was so

    def left(self, address: str) -> float:
        """Return how many times an address has left."""
        left, last = self._addresses.get(address, (self.most, 0.0))
        return min(self.most, left + (time.monotonic() - last) * self.most / 60)

    def take(self, address: str) -> bool:
        """Count one time more; return whether it was allowed."""
        left = self.left(address) - 1
        self._addresses[address] = (max(left, 0.0), time.monotonic())
        self._addresses.move_to_end(address)
        if len(self._addresses) > ADDRESSES:
            self._addresses.popitem(last=False)
        return left >= 0

    def refusal(self, what: str) -> web.Response:
        """Return the answer to an address that has tried too often."""
        answer = refusal(429, "rate", f"at most {self.most} {what} per minute from one address; wait a little")
        answer.headers["Retry-After"] = str(max(1, round(60 / self.most)))
        return answer


class Door:
    """Decides about requests.

    Args:
      settings: token, origins and rates.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._calls, self._guesses = Rate(settings.calls_per_minute), Rate(settings.calls_per_minute)

    def check_token(self, request: web.Request) -> web.Response | None:
        """Return the refusal of a request without the token; None if it may pass.

        Wrong tokens are limited as calls are. Beyond that an address is not told whether its token is the right one.
        """
        token, address = self._settings.token, self.address(request)
        if token is None:
            return None
        if self._guesses.left(address) < 1:
            return self._guesses.refusal("wrong tokens")
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else request.query.get("token", "")
        if hmac.compare_digest(given.encode(errors="replace"), token.encode()):
            return None
        if given:
            self._guesses.take(address)
        answer = refusal(
            401,
            "unauthorized",
            "this server needs its token: send the header `Authorization: Bearer TOKEN`, or add ?token=TOKEN",
        )
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    def check_call(self, request: web.Request) -> web.Response | None:
        """Return the refusal of a call by its token, origin or rate; None if it may pass."""
        return self.check_token(request) or self._check_origin(request) or self._check_rate(request)

    def check_upgrade(self, request: web.Request) -> web.Response | None:
        """Return the refusal of a request that is no WebSocket; None if it is one."""
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return None
        hop = request.headers.get("Via", "").split(",")[-1].strip()[:100] or request.remote
        answer = refusal(
            426,
            "upgrade",
            "a call is a WebSocket, and this request is none; if the client has asked for the upgrade, "
            f"{hop}, from which the request has come, does not pass WebSocket upgrades on",
        )
        answer.headers["Upgrade"] = "websocket"
        return answer

    def _check_origin(self, request: web.Request) -> web.Response | None:
        origin = request.headers.get("Origin")
        if origin is None or origin in self._settings.origins or origin.partition("://")[2] == request.host:
            return None
        return refusal(
            403,
            "origin",
            f"pages of {origin[:200]} may not call this server; the operator can allow them with --origin",
        )

    def _check_rate(self, request: web.Request) -> web.Response | None:
        return None if self._calls.take(self.address(request)) else self._calls.refusal("calls")

    def address(self, request: web.Request) -> str:
        """Return the caller's address."""
        if self._settings.proxied:
            # The last one was added by our proxy, the others came with the request.
            forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")[-1].strip()
            if forwarded:
                return forwarded
        return request.remote or "?"
