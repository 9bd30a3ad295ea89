"""`moshijax quickstart` as a user runs it: the whole job, killed on the way, and what it leaves behind."""

from __future__ import annotations

import html
import json
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moshijax import runtime
from moshijax.eval.calls import normalise
from moshijax.eval.spoken_qa import PlayedCalls
from moshijax.quickstart import pipeline, stages
from moshijax.quickstart.settings import Folder, Settings
from moshijax.runtime import audio
from moshijax.runtime.manifest import TOKENIZER
from tests.serve.support import browser as browsers
from tests.serve.support.running import Running, serving

COMMAND = (sys.executable, "-m", "moshijax.cli.main", "quickstart", "--run-dir")

SMALL = Settings(
    recordings=16,
    answered=32,
    unanswered=16,
    silent=2,
    heldout=4,
    codec_overrides=("steps=6", "log_every=2", "checkpoint_every=2", "optimizer.warmup_steps=2"),
    lm_overrides=(
        *("steps=6", "log_every=2", "checkpoint_every=2"),
        *("optimizer.warmup_steps=2", "task.text.optimizer.warmup_steps=2"),
    ),
)
# The same command with few calls and steps, so that the way through all stages takes a minute or two.
SMALL_RUN = """
import sys
from pathlib import Path
from moshijax.quickstart import pipeline, stages
from moshijax.quickstart.settings import Folder
from tests.system.test_quickstart import SMALL

if __name__ == "__main__":
    stages.run(pipeline.STAGES, SMALL, Folder(Path(sys.argv[1])))
"""


def figures_of(folder: Folder) -> dict:
    return json.loads(folder.figures.read_text())


@pytest.mark.slow
def test_first_stage_alone(tmp_path):
    run_dir = tmp_path / "run"
    done = subprocess.run([*COMMAND, run_dir, "--until", "synthesize"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = (run_dir / "training_calls" / "manifest.jsonl").read_text().splitlines()
    marker = json.loads((run_dir / "stages" / "synthesize.json").read_text())
    # A spliced sentence may be too long for its call: it is named and left out.
    rejected = [
        name for name, reason in marker["figures"]["rejected"] if name.startswith("train-") and "ends at" in reason
    ]
    wanted = Settings().answered + Settings().unanswered + Settings().silent
    assert len(manifest) + len(rejected) == wanted and len(rejected) <= wanted // 500
    again = subprocess.run([*COMMAND, run_dir, "--until", "synthesize"], capture_output=True, text=True)
    assert again.returncode == 0 and "done before" in again.stderr


def test_bad_arguments_are_one_line(tmp_path, cli):
    code, _, err = cli("quickstart", "--run-dir", tmp_path / "run", "--until", "lunch")
    assert code == 2 and err.count("\n") == 1 and "'lunch'" in err and "synthesize" in err
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    code, _, err = cli("quickstart", "--run-dir", occupied)
    assert code == 2 and err.count("\n") == 1 and str(occupied) in err
    assert [path.name for path in occupied.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_killed_at_random_it_ends_as_if_it_had_never_stopped(tmp_path):
    """SIGKILL three times at random moments; then every result is that of an undisturbed run."""
    script = tmp_path / "small_run.py"
    script.write_text(SMALL_RUN)
    root = Path(__file__).resolve().parents[2]
    rng, killed = random.Random(5), tmp_path / "killed"
    for _ in range(3):
        process = subprocess.Popen([sys.executable, script, killed], cwd=root, env=with_path(root))
        time.sleep(rng.uniform(3, 30))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, script, killed], cwd=root, env=with_path(root), check=True)
    straight = Folder(tmp_path / "straight")
    stages.run(pipeline.STAGES, SMALL, straight)
    found, expected = figures_of(Folder(killed)), figures_of(straight)
    found.pop("timing"), expected.pop("timing")
    assert found == expected
    assert Folder(killed).report.stat().st_size > 1e6 and Folder(killed).reply.stat().st_size > 1e5
    assert "Words heard" in straight.report.read_text()
    assert (straight.artifact / TOKENIZER).read_bytes() == straight.tokenizer.read_bytes()


def with_path(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Folder, str]:
    """The run of the real command, and what it printed, with the time that it took."""
    folder = Folder(tmp_path_factory.mktemp("quickstart") / "run")
    begun = time.monotonic()
    done = subprocess.run([*COMMAND, folder.path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, f"quickstart took {(time.monotonic() - begun) / 60:.1f} min\n{done.stdout}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_trained_model_answers_voices_it_never_heard(trained, tmp_path, record_property):
    """Demanded: 6 of 10 questions answered exactly, at most 4 of 10 unrelated utterances answered.

    The aim is 9 of 10, and 1 of 10.
    """
    folder, printed = trained
    record_property("figures", printed)
    figures = figures_of(folder)
    clear = figures["groups"]["clear"]
    assert clear["exact"]["total"] >= 20 and clear["unrelated_answered"]["total"] >= 20
    assert clear["exact"]["rate"] >= 0.6
    assert clear["unrelated_answered"]["rate"] <= 0.4
    assert clear["chance"] <= 0.1 and figures["untrained"]["exact"]["hits"] == 0
    assert figures["silent_answered"]["rate"] <= 0.4
    energy = figures["energy"]
    assert energy["words_db"] > energy["silence_db"] + 20 and energy["quiet"] >= 0.9 and energy["audible"] >= 0.8
    assert "questions answered exactly" in printed
    report = folder.report.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', report)
    for part in ("token grid", "Spectrograms", "Milliseconds per step", "Held-out calls", "Training of the codec"):
        assert part in report or part.lower() in report.lower()
    commands = re.search(r"<pre>(.*?)</pre>", report, re.S)[1].splitlines()
    assert len(commands) == 3
    for command in commands[:2]:
        again = subprocess.run(
            [sys.executable, "-m", "moshijax.cli.main", *shlex.split(html.unescape(command))[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert again.returncode == 0, f"{command}\n{again.stderr}"
    assert (folder.artifact / "artifact.json").exists() and folder.reply.exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_shows_and_plays_the_answer_of_the_trained_model(trained, tmp_path, record_property):
    """Questions that were answered rightly are asked into a browser's microphone, until one is answered so again.

    When exactly the browser begins to listen is up to chance, so that a call may differ from the one before.
    """
    browsers.require()
    folder, _ = trained
    played = PlayedCalls.load(folder.calls)
    asked = [call for call in played.calls if call.kind == "question" and call.right][:4]
    found = []
    with serving(runtime.load(folder.artifact), 1) as server:
        for call in asked:
            said, loudest = ask(server, folder.heldout / "audio" / f"{call.id}.wav", tmp_path / call.id)
            found.append(f"{call.asked} {said} (expected: {call.expected}; loudest sample {loudest:.2f})")
            if normalise(said) == normalise(call.expected) and loudest > 0.02:
                break
        else:
            pytest.fail("\n".join(found))
    record_property("figures", "\n".join(found))


def ask(server: Running, recording: Path, folder: Path) -> tuple[str, float]:
    """Play the user of a recording into the page, and return the words that appear and the model's loudest sample."""
    folder.mkdir()
    question = audio.read_channel(recording, 24_000, "right")
    audio.write(folder / "question.wav", np.pad(question, (12_000, 10 * 24_000))[:, None], 24_000)
    browser = browsers.Browser(folder / "profile", browsers.microphone(folder / "question.wav"))
    address = f"http://localhost:{server.port}/"
    try:
        with browser.page(address) as page:
            page.allow_microphone(address)
            page.wait_for("document.querySelector('#model').textContent")
            page.click("#headphones")
            page.click("#call")
            page.wait_for("document.querySelector('#clock').textContent === '0:07'")
            page.click("#call")
            words = page.evaluate("[...document.querySelectorAll('#transcript p > span')].map((s) => s.textContent)")
            saved = page.download("[data-save=wav]", folder / "saved")
            return " ".join(words), float(np.abs(audio.read_channel(saved, 24_000, "left")).max())
    finally:
        browser.close()
