"""The command group: exit codes, one-line errors, help, and what is imported when."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import click
import pytest

import moshijax
from moshijax.cli import main
from moshijax.errors import ConfigError, DataError, MoshijaxError, Stopped


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "moshijax.cli.main", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture
def failing(monkeypatch):
    """Make `moshijax doctor` raise what the test wants, to see what becomes of it."""

    def install(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(main.Commands, "get_command", lambda self, ctx, name: command)

    return install


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MoshijaxError("it broke"), 1),
        (ConfigError("steps is 0; it must be at least 1"), 2),
        (DataError("call.wav is mono; give stereo"), 3),
        (Stopped("stopped at step 7; the same command resumes"), 75),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(cli, failing, error, code) -> None:
    failing(error)
    assert cli("doctor") == (code, "", f"error: {error}\n")


def test_a_message_of_several_lines_becomes_one(cli, failing) -> None:
    failing(DataError("two\n  lines"))
    assert cli("doctor") == (3, "", "error: two lines\n")


def test_control_c_is_resumable(cli, failing) -> None:
    failing(KeyboardInterrupt())
    code, out, err = cli("doctor")
    assert code == 75 and out == "" and err.strip().startswith("error: interrupted")


def test_the_end_of_a_damaged_file_is_no_interruption(cli, failing) -> None:
    """Which click makes of it, and a scheduler would then run the command again and again."""
    failing(EOFError("No data left in file"))
    with pytest.raises(EOFError, match="No data left"):
        cli("doctor")


def test_a_full_disk_is_one_line_with_the_file(cli, failing) -> None:
    failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/shard-00001"))
    code, _, err = cli("doctor")
    assert code == 1 and "no space left" in err and "/data/shard-00001" in err and err.count("\n") == 1


def test_a_missing_optional_package_names_its_extra(cli, failing) -> None:
    failing(ModuleNotFoundError("No module named 'soundfile'", name="soundfile"))
    assert cli("doctor") == (1, "", "error: package 'soundfile' is not installed: pip install 'moshijax[data]'\n")


def test_a_bug_keeps_its_traceback(cli, failing) -> None:
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli("doctor")
    failing(ModuleNotFoundError("No module named 'moshijax.nope'", name="moshijax.nope"))
    with pytest.raises(ModuleNotFoundError):
        cli("doctor")


def test_bad_usage_is_one_line_and_code_2(cli) -> None:
    for arguments in (["nonsense"], ["doctor", "--nonsense"], ["doctor", "extra"]):
        code, out, err = cli(*arguments)
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_version_and_help_in_a_process_of_their_own() -> None:
    done = shell("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"moshijax, version {moshijax.__version__}")
    done = shell("--help")
    assert done.returncode == 0 and "doctor" in done.stdout and done.stderr == ""
    assert shell("doctor", "--nonsense").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_long_work_with_75_and_the_same_command_continues(number, tmp_path) -> None:
    out = tmp_path / "speech"
    command = [sys.executable, "-m", "moshijax.cli.main", "data", "synthesize", "data/dialogues", str(out)]
    process = subprocess.Popen(
        [*command, "--copies", "30"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs with &
    )
    while not out.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "Traceback" not in err and err.strip().splitlines()[-1].startswith("error: "), err
    assert not (out / "manifest.jsonl").exists()


def every_command(command: click.Command, path: tuple[str, ...] = ()):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from every_command(command.get_command(context, name), (*path, name))
    else:
        yield path, command


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*pair, id=" ".join(pair[0])) for pair in every_command(main.cli)]
)
def test_every_command_has_help_with_an_example_and_says_what_its_options_do(path, command) -> None:
    text = command.get_help(click.Context(command, info_name=" ".join(path)))
    assert "Example" in text and f"moshijax {' '.join(path)}" in text
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help and not p.hidden]
    assert not silent, f"options without help: {silent}"


def test_a_command_that_is_not_built_does_not_appear(cli, monkeypatch) -> None:
    monkeypatch.setattr(main, "COMMANDS", ("doctor", "teleport"))
    assert "teleport" not in cli("--help")[1]
    code, _, err = cli("teleport")
    assert code == 2 and "teleport" in err


def test_a_cache_folder_that_is_not_writable_is_said_once_and_not_used(tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = shell("--version", JAX_COMPILATION_CACHE_DIR=str(blocked / "cache"))
    assert done.returncode == 0
    assert done.stderr.count("not writable") == 1


def test_what_is_compiled_without_a_writable_cache_says_nothing_more(tmp_path) -> None:
    """jax itself would warn when it compiles."""
    (tmp_path / "file").write_text("")
    begin = "import jax\n"
    programs = "for n in (2, 3): print(jax.jit(lambda x: x * n)(1.0))"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file" / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    said = []
    for setup in ("", "from moshijax.cli.main import drop_unwritable_cache as drop; drop()\n"):
        command = [sys.executable, "-W", "always", "-c", setup + begin + programs]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.stdout == "2.0\n3.0\n", done.stderr
        said.append(done.stderr)
    assert "UserWarning" in said[0] and "persistent compilation cache" in said[0]
    assert "Warning" not in said[1] and said[1].count(environment["JAX_COMPILATION_CACHE_DIR"]) == 1


def test_help_imports_no_jax() -> None:
    code = (
        "import sys; from moshijax.cli.main import run; run(['--help']); "
        "print(sorted({'jax', 'flax', 'grain', 'gin', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout[-300:]


def test_stepping_commands_start_again_with_huge_pages_where_the_system_offers_them(monkeypatch, tmp_path) -> None:
    started = []
    monkeypatch.setattr(main.os, "execv", lambda path, arguments: started.append((path, arguments)))
    monkeypatch.setattr(main, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setenv(main.MALLOC, "")
    monkeypatch.delenv(main.MALLOC)
    main.ask_for_huge_pages(["train", "x.gin"])
    main.HUGE_PAGES.write_text("[always] madvise never")
    main.ask_for_huge_pages(["train", "x.gin"])
    main.HUGE_PAGES.write_text("always [madvise] never")
    main.ask_for_huge_pages(["run", "artifact"])
    main.ask_for_huge_pages([])
    assert not started
    main.ask_for_huge_pages(["train", "x.gin"])
    assert started == [(sys.executable, sys.orig_argv)] and "hugetlb=1" in os.environ[main.MALLOC]
    main.ask_for_huge_pages(["train", "x.gin"])
    assert len(started) == 1
