"""The processes of one run, usually one per host or per GPU: how they find each other, and what they do when one of
them is lost.

Arrays travel through jax. Beside it there is a heartbeat: every process keeps a TCP connection to process 0 and says
once a second that it is alive. A collective operation waits for ever for a process that was killed; the heartbeat does
not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np

from moshijax.errors import ConfigError, MoshijaxError, Stopped

log = logging.getLogger(__name__)

LOST_AFTER = 60.0  # seconds of silence after which a process counts as lost; one that ends is noticed at once
BEAT = 1.0
GRACE = 3.0  # from an error that a lost process may have caused to the news of it
CONNECT = 30.0
AGAIN = "start the same command on all hosts again: the run continues from its last complete checkpoint"

_coordinator: str | None = None


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of a cluster through which `jax.distributed` finds the others.

    Such are a Slurm step, Open MPI and a slice of Cloud TPU hosts.
    """

    def count(name: str) -> int:
        value = environment.get(name, "1")
        return int(value) if value.isdecimal() else 1

    slurm = "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment and count("SLURM_NTASKS") > 1
    tpu = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or count("MEGASCALE_NUM_SLICES") > 1
    return slurm or tpu or count("OMPI_COMM_WORLD_SIZE") > 1


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    lost_after: float = LOST_AFTER,
) -> None:
    """Make this process one of a run's; call it before anything that uses devices.

    Args:
      coordinator: "host:port" of process 0, the same on all; None: as the cluster says.
      processes, process: how many there are, and which of them this is; None: as the cluster says.
      lost_after: seconds of silence after which a process counts as lost.

    Raises:
      ConfigError: values that do not fit, or no cluster that knows those that are missing.
      MoshijaxError: the others were not reached.
    """
    global _coordinator
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ConfigError(f"coordinator {coordinator!r} is not HOST:PORT; name a free port of the host of process 0")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ConfigError(f"process {process} is not one of {processes}; they count from 0 to {processes - 1}")
    # Without effect on other platforms. Stopping is agreed upon in `signals`, so jax need not listen for SIGTERM.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    _coordinator = coordinator
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=round(lost_after + 4 * GRACE)
        )
    except ValueError as error:
        given = f"coordinator {coordinator}, processes {processes}, process {process}"
        raise ConfigError(
            f"{given}: {error} No cluster is known here that could name the rest; give --coordinator, --processes "
            "and --process"
        ) from None
    except RuntimeError as error:
        who = "the coordinator" if coordinator is None else coordinator
        raise MoshijaxError(
            f"the processes of the run did not meet at {who}: {error}; check that all of them run and its port is open"
        ) from None


@dataclass
class _Peer:
    """The other end of a connection."""

    socket: socket.socket
    number: int | None = None  # None until it has introduced itself
    host: str = ""
    heard: float = field(default_factory=time.monotonic)
    left: bool = False  # in order
    received: bytes = b""


class Heartbeat:
    """Detects lost or failed peers while it is entered.

    Within `lost_after` seconds every process prints one line on standard error and exits: with 1 if a peer was lost,
    otherwise with the failed peer's code. The loop cannot continue then, and cannot be unwound either (threads wait for
    collectives in native code), so the process ends at once; what it was writing stays invisible. With a single process
    nothing happens.
    """

    def __init__(self, lost_after: float = LOST_AFTER) -> None:
        self.lost_after = lost_after
        self._peers: list[_Peer] = []
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._known: set[int] = set()  # processes that have introduced themselves to process 0
        self._token = ""
        self._last: list[Callable[[], object]] = []
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def before_exit(self, action: Callable[[], object]) -> None:
        """Do something before this ends the process, which unwinds nothing; from whichever thread notices the end."""
        self._last.append(action)

    def __enter__(self) -> Heartbeat:
        if jax.process_count() == 1:
            return self
        self._me = jax.process_index()
        if self._me == 0:
            self._listen()
        else:
            self._connect()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end(kind, error, trace)
        self._over.set()
        self._say({"left": True})
        if self._thread.ident is not None:
            self._thread.join()  # one that is still there when the interpreter ends is torn down wherever it is

    def end(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Tell the others of an error of this process, and end it; do nothing without error, or if all stop together.

        Call it before anything that waits for the other processes is closed: they will not come.
        """
        if jax.process_count() == 1 or error is None or isinstance(error, Stopped):
            return
        if isinstance(error, MoshijaxError):
            code, text = error.exit_code, " ".join(str(error).split())
            os.write(2, f"error: {text}\n".encode())
        else:
            self._over.wait(GRACE)  # if another one is lost, the heartbeat ends this process meanwhile, and names it
            code, text = 1, " ".join(f"{type(error).__name__}: {error}".split())[:500]
            traceback.print_exception(kind, error, trace)
        self._over.set()
        self._say({"failed": text, "process": self._me, "code": code})
        self._end(code)

    def _listen(self) -> None:
        """Open a port, on process 0, and tell the others of it through jax."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, backlog=jax.process_count(), dualstack_ipv6=dual)
        own, _, _ = (_coordinator or "").rpartition(":")
        names = [name for name in (own, _address(), socket.gethostname(), "127.0.0.1") if name]
        self._token = secrets.token_hex(16)
        _broadcast({"port": server.getsockname()[1], "token": self._token, "names": list(dict.fromkeys(names))})
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)
        self._since = time.monotonic()

    def _connect(self) -> None:
        found = _broadcast({})
        self._token, until = found["token"], time.monotonic() + CONNECT
        hello = {"token": self._token, "process": self._me, "host": socket.gethostname()}
        while time.monotonic() < until:
            for name in found["names"]:
                with contextlib.suppress(OSError):
                    peer = _Peer(socket.create_connection((name, found["port"]), timeout=5), 0, name)
                    _send(peer, hello)
                    if peer.socket.recv(len(self._token), socket.MSG_WAITALL).decode() == self._token:
                        self._add(peer)
                        return
                    peer.socket.close()
            time.sleep(BEAT)
        raise MoshijaxError(
            f"process {self._me} cannot reach process 0 at {', '.join(found['names'])}, port {found['port']}; let the "
            "hosts of a run open connections to each other"
        )

    def _add(self, peer: _Peer) -> None:
        peer.socket.settimeout(5)
        peer.heard = time.monotonic()
        with self._lock:
            self._peers.append(peer)
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    def _say(self, message: Mapping[str, Any]) -> None:
        """Send to all others: from process 0 directly, else to process 0."""
        with self._lock:
            for peer in self._peers:
                if peer.number is not None:
                    with contextlib.suppress(OSError):
                        _send(peer, message)

    def _watch(self) -> None:
        beaten = 0.0
        while not self._over.is_set():
            for key, _ in self._selector.select(BEAT / 2):
                if key.data is None:
                    with contextlib.suppress(OSError):
                        self._add(_Peer(key.fileobj.accept()[0]))
                else:
                    self._receive(key.data)
            now = time.monotonic()
            if now - beaten >= BEAT:
                self._say({})
                beaten = now
            for peer in list(self._peers):
                if not peer.left and peer.number is not None and now - peer.heard > self.lost_after:
                    self._lost(peer.number, peer.host, f"was silent for {self.lost_after:.0f} s")
            if self._me == 0 and now - self._since > CONNECT + self.lost_after:
                for number in set(range(1, jax.process_count())) - self._known:
                    self._lost(number, "unknown", "never connected to process 0")

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.socket.recv(4096)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            if peer.number is not None and not peer.left:
                self._lost(peer.number, peer.host, "ended without a word")
            return
        peer.heard = time.monotonic()
        *lines, peer.received = (peer.received + data).split(b"\n")
        for line in lines:
            if peer.number is None:
                self._greet(peer, line)
            else:
                self._take(peer, json.loads(line))

    def _greet(self, peer: _Peer, line: bytes) -> None:
        """Take the first line on a connection: of a process of this run, or of a stranger."""
        try:
            message = json.loads(line)
            if not secrets.compare_digest(message["token"], self._token):
                raise ValueError
            peer.number, peer.host = message["process"], message["host"]
            self._known.add(peer.number)
            peer.socket.sendall(self._token.encode())
        except (ValueError, KeyError, TypeError, OSError):
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.socket)
        peer.socket.close()
        with self._lock:
            self._peers.remove(peer)

    def _take(self, peer: _Peer, message: Mapping[str, Any]) -> None:
        if "lost" in message:
            self._report(1, message["lost"])
        elif "failed" in message:
            self._say(message)  # process 0 hears it from the one that failed, the others from process 0
            self._report(message["code"], f"process {message['process']} failed: {message['failed']}")
        elif "left" in message:
            peer.left = True

    def _lost(self, number: int, host: str, how: str) -> None:
        text = f"process {number} (on {host}) {how} and is lost; {AGAIN}"
        self._say({"lost": text})
        self._report(1, text)

    def _report(self, code: int, text: str) -> None:
        if not self._over.is_set():
            os.write(2, f"error: {text}\n".encode())
            self._end(code)

    def _end(self, code: int) -> NoReturn:
        """End the process without the farewell of jax, which waits for all the others.

        Process 0 goes last: jax aborts the others when it is gone, before they could say why they end.
        """
        until = time.monotonic() + GRACE
        for peer in list(self._peers) if self._me == 0 else ():
            with contextlib.suppress(OSError):
                while peer.socket.fileno() >= 0 and (left := until - time.monotonic()) > 0:
                    peer.socket.settimeout(left)
                    if not peer.socket.recv(4096):
                        break
        for action in (*self._last, sys.stdout.flush, sys.stderr.flush):
            with contextlib.suppress(Exception):
                action()
        os._exit(code)


def _send(peer: _Peer, message: Mapping[str, Any]) -> None:
    peer.socket.sendall(json.dumps(message).encode() + b"\n")


def _address() -> str:
    """Return the address of this host as others see it; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
    return ""


def _broadcast(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message of process 0, in every process."""
    from jax.experimental import multihost_utils

    text = json.dumps(message).encode()
    padded = np.zeros(1024, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    found = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    return json.loads(found.tobytes().rstrip(b"\0"))


def gathered(value: Any) -> list[Any]:
    """Return the JSON values of all processes, in their order, in every process."""
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    from jax.experimental import multihost_utils

    longest = int(np.max(multihost_utils.process_allgather(np.int32(len(text)))))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return [json.loads(row.tobytes()) for row in np.asarray(multihost_utils.process_allgather(padded))]


def agreed(value: int) -> int:
    """Return the value of process 0, in every process."""
    return value if jax.process_count() == 1 else int(_broadcast({"value": value})["value"])
