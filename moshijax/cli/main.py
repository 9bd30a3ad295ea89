"""The `moshijax` command: one thin module per sub-command, imported when it is used."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

import moshijax
from moshijax.annotations import shown
from moshijax.cli.common import writable
from moshijax.errors import ConfigError, MoshijaxError, Stopped
from moshijax.files import BAD_PATH, is_out_of_space
from moshijax.optional import EXTRA_OF, missing

# In the order in which a user meets them. `moshijax.cli.<name>.command` is the click command; one without a module
# is not built yet and does not appear.
COMMANDS = (
    "quickstart",
    "data",
    "train",
    "codec",
    "weights",
    "export",
    "run",
    "serve",
    "eval",
    "plan",
    "doctor",
)

# Commands whose time goes into compiled steps, one after the other.
STEPPING = ("quickstart", "data", "train", "eval")
MALLOC = "GLIBC_TUNABLES"
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

NO_ACCESS = (errno.EACCES, errno.EROFS, errno.EPERM)


class Commands(click.Group):
    """A group whose commands are modules, so that `moshijax doctor` does not import the trainer."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that are built."""
        return [name for name in COMMANDS if importlib.util.find_spec(f"moshijax.cli.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return it."""
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"moshijax.cli.{cmd_name}").command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(moshijax.__version__, prog_name="moshijax")
def cli() -> None:
    """Train, export and talk to full-duplex voice models.

    \b
    Example:
      moshijax quickstart --run-dir runs/first
    """


def fail(message: object, exit_code: int) -> int:
    """Print an error as one line and return its exit code."""
    click.echo(f"error: {' '.join(str(message).split())}", err=True)
    return exit_code


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0 done, 1 failed while working, 2 bad arguments or config, 3 bad data, 75 stopped by a signal and resumable. Any
    other exception is a bug and keeps its traceback.
    """
    try:
        result = cli.main(args=list(arguments), prog_name="moshijax", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # (click takes the end of a damaged file for that of a prompt)
            raise error.__cause__ from None
        return fail("interrupted; the same command continues the work", Stopped.exit_code)
    except MoshijaxError as error:
        return fail(error, error.exit_code)
    except ModuleNotFoundError as error:
        if error.name not in EXTRA_OF:
            raise
        return fail(missing(error.name), 1)
    except Exception as error:
        if is_out_of_space(error):
            where = f" while writing {error.filename}" if getattr(error, "filename", None) else ""
            return fail(f"no space left on the device{where}; free some space and run the same command again", 1)
        if isinstance(error, OSError) and error.errno in BAD_PATH and error.filename:
            return fail(f"cannot use {shown(error.filename)}: {error.strerror}; check the path", ConfigError.exit_code)
        if isinstance(error, OSError) and error.errno in NO_ACCESS and error.filename:
            return fail(f"cannot open {error.filename}: {error.strerror}; choose another path", 1)
        raise


def drop_unwritable_cache() -> None:
    """Warn once, at the start, that compiled programs will not be kept, and unset the folder.

    jax itself would warn at a compilation, with a Python warning from its own files.
    """
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if folder and "://" not in folder and not writable(Path(folder)):
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
        click.echo(f"warning: JAX_COMPILATION_CACHE_DIR={folder} is not writable; nothing is cached", err=True)


def ask_for_huge_pages(arguments: Sequence[str]) -> None:
    """Start the same command again with huge pages for `malloc`, which glibc takes from the environment alone.

    XLA on CPU allocates temporaries in every step. With pages of 4 KB that is a fifth to a quarter of the CPU time of
    a training step. Nothing happens where the system offers no choice, or the user has made one.
    """
    if not arguments or arguments[0] not in STEPPING or MALLOC in os.environ:
        return
    if HUGE_PAGES.exists() and "[madvise]" in HUGE_PAGES.read_text():
        os.environ[MALLOC] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, sys.orig_argv)


def interrupt(signum: int, frame: object) -> None:
    """Handle SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line of this process."""
    ask_for_huge_pages(sys.argv[1:])
    drop_unwritable_cache()
    signal.signal(signal.SIGTERM, interrupt)  # a training run takes over both signals and saves first
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
