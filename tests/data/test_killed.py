"""A process that is killed in the middle of a job: the same command ends as if it had never been."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from moshijax.data.text import train_tokenizer
from tests.data.test_prepare import digests

#: The command line, in a process that kills itself when it comes to a certain piece of text.
CODE = """
    import os, signal, sys
    from moshijax.cli.main import main
    from moshijax.data import documents
    documents._PIECE = 100
    plain, last = documents.TextPlan._read, int(sys.argv.pop(1))

    def read(self, piece):
        if piece.id.endswith(f"#{last}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, piece)

    documents.TextPlan._read = read
    main()
"""


def test_a_killed_preparation_is_continued_by_the_same_command(tmp_path):
    lines = [f"line {number} of a text" for number in range(100)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    train_tokenizer(lines, 300).save(tmp_path / "t.model")

    def prepare(out: str, last: int) -> subprocess.CompletedProcess:
        given = ["a.txt", out, "--tokenizer", "t.model", "--shard-items", "4"]
        command = [sys.executable, "-c", textwrap.dedent(CODE), str(last), "data", "prepare", *given]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert prepare("whole", -1).returncode == 0
    assert prepare("parts", 15).returncode == -9  # in the fourth shard
    assert not (tmp_path / "parts" / "dataset.json").exists()
    done = prepare("parts", -1)
    assert done.returncode == 0 and "(3 kept)" in done.stdout, done.stdout + done.stderr
    whole, parts = digests(tmp_path / "whole"), digests(tmp_path / "parts")
    assert whole == {name: parts[name] for name in whole} and parts.keys() - whole.keys() <= {".lock"}
