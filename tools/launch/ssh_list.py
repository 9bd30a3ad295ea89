"""Start one training run on a list of hosts over SSH, one process per host, and watch it.

    python tools/launch/ssh_list.py hosts.txt --directory /shared/moshijax -- RECIPE.gin --run-dir /shared/runs/mine

hosts.txt has one host a line (`user@host` is fine); the first one coordinates. What follows `--` goes to `moshijax
train`. Output comes with the host in front. SIGTERM and Ctrl-C are passed on, and the run saves and ends with 75. When
a host is lost the others end by themselves; `--restarts 10` then starts the whole run again, up to ten times.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

RESUMABLE = 75
GIVEN = (2, 3)  # a recipe or data that cannot work: starting again does not help
PID = "moshijax-pid "


@dataclass
class Host:
    """The process on one host: its SSH connection, and its number there."""

    name: str
    command: str
    ssh: Sequence[str]
    process: subprocess.Popen | None = None
    pid: str | None = None
    printer: threading.Thread | None = field(default=None, repr=False)

    def start(self) -> None:
        # `exec`, so that the number that is printed is that of the training process.
        remote = f"echo {PID}$$; exec {self.command}"
        self.process = subprocess.Popen(
            [*self.ssh, self.name, remote],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal goes through `stop` alone
        )
        self.printer = threading.Thread(target=self._print, daemon=True)
        self.printer.start()

    def _print(self) -> None:
        for line in self.process.stdout:
            if line.startswith(PID):
                self.pid = line.removeprefix(PID).strip()
            else:
                print(f"[{self.name}] {line}", end="", flush=True)

    def stop(self, name: str) -> None:
        """Send the remote process a signal, over a separate connection, because SSH forwards none."""
        if self.pid is not None and self.process.poll() is None:
            subprocess.run([*self.ssh, self.name, f"kill -{name} {self.pid}"], check=False, timeout=60)

    def wait(self) -> int:
        code = self.process.wait()
        self.printer.join()
        return code


def commands(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Return the command for each host."""
    coordinator = f"{names[0].rpartition('@')[2]}:{options.port}"
    found = []
    for number in range(len(names)):
        own = ["--coordinator", coordinator, "--processes", str(len(names)), "--process", str(number)]
        settings = shlex.join(["env", *options.set]) + " " if options.set else ""
        train = f"{settings}{options.moshijax} {shlex.join(['train', *own, *options.arguments])}"
        found.append(f"cd {shlex.quote(options.directory)} && {train}" if options.directory else train)
    return found


def run(hosts: Sequence[Host], again: threading.Event) -> int:
    """Start the process of every host, wait for all, and return the code of the run."""
    for host in hosts:
        host.start()
    codes = [host.wait() for host in hosts]
    for host, code in zip(hosts, codes, strict=True):
        if code:
            print(f"[{host.name}] ended with {code}", flush=True)
    wrong = [code for code in codes if code not in (0, RESUMABLE)]
    if not wrong:
        return max(codes)
    again.set()
    given = [code for code in wrong if code in GIVEN]
    if given:
        again.clear()
    return given[0] if given else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("hosts", help="file with one host a line")
    parser.add_argument("--directory", help="directory to be in on every host")
    parser.add_argument("--moshijax", default="moshijax", help="the command on the hosts (default: moshijax)")
    parser.add_argument("--port", type=int, default=9876, help="free port of the first host (default: 9876)")
    parser.add_argument("--ssh", default="ssh -o BatchMode=yes -o ServerAliveInterval=15", help="how to reach a host")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="environment on the hosts")
    parser.add_argument("--restarts", type=int, default=0, help="start again so often when the run fails (default: 0)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("arguments", nargs="+", help="for `moshijax train`, after --")
    options = parser.parse_args(arguments)
    with open(options.hosts, encoding="utf-8") as file:
        names = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    if not names:
        parser.error(f"{options.hosts} names no host")
    ssh = shlex.split(options.ssh)
    hosts = [Host(name, command, ssh) for name, command in zip(names, commands(names, options), strict=True)]
    if options.dry_run:
        for host in hosts:
            print(shlex.join([*ssh, host.name, host.command]))
        return 0
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        stopped.set()
        # One is enough, the processes agree; all, in case the first is gone.
        for host in hosts:
            threading.Thread(target=host.stop, args=(signal.Signals(number).name.removeprefix("SIG"),)).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for left in range(options.restarts, -1, -1):
        again = threading.Event()
        code = run(hosts, again)
        if stopped.is_set() or not again.is_set() or not left:
            return code
        print(f"the run ended with {code}; starting it again ({left} times left)", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
