"""Measure words and their times on calls by synthesisers, whose words and times are known, with Whisper tiny.en.

python -m tools.bench.words
"""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tools.bench import support

TITLE = "Words of recordings"
Words = list[tuple[str, float, float, str]]  # word, start, end, label


def words_of(path: Path) -> Words:
    entries = json.loads(path.read_text())["alignments"]
    return [(word, start, end, label) for word, (start, end), label, *_ in entries]


def errors(exact: Words, found: Words) -> tuple[int, int, list[float], list[float]]:
    """Return wrong words, words in all, and by how many seconds starts and ends of the same words differ."""
    from moshijax.eval.word_errors import normalize, word_errors

    wrong, total, starts, ends = 0, 0, [], []
    for label in ("SPEAKER_MAIN", "SPEAKER_USER"):
        one, other = ([word for word in words if word[3] == label] for words in (exact, found))
        texts = [normalize(" ".join(word for word, *_ in words)) for words in (one, other)]
        wrong, total = wrong + word_errors(*texts), total + len(normalize(" ".join(w for w, *_ in one)))
        names = [[str(normalize(word)) for word, *_ in words] for words in (one, other)]
        for a, b, size in difflib.SequenceMatcher(None, *names, autojunk=False).get_matching_blocks():
            for n in range(size):
                starts.append(other[b + n][1] - one[a + n][1])
                ends.append(other[b + n][2] - one[a + n][2])
    return wrong, total, starts, ends


def calls(folder: Path, voices: str, count: int) -> Iterator[Path]:
    """Make calls with overlaps, and yield the files of their words, beside which their sound lies."""
    from moshijax import shipped
    from moshijax.data.synthesis import CASTS
    from moshijax.data.synthesis import texts as scripts
    from moshijax.data.synthesis.run import synthesize

    dialogues = scripts.load(shipped.folder("data") / "dialogues", 0, 1, CASTS[voices])[:count]
    synthesize(dialogues, folder / "made", seed=0, workers=1)
    for sidecar in sorted((folder / "made").rglob("*.json")):
        if sidecar.with_suffix(".wav").exists():
            yield sidecar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=6, help="of each synthesiser")
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    support.limit_threads(1)

    from moshijax.data.aligned import Aligned
    from moshijax.data.manifest import read_recordings
    from moshijax.data.recognizer import Whisper
    from moshijax.data.transcribe import transcribe
    from moshijax.data.word_sources import Heard

    whisper, rows = Whisper(), []
    for voices in ("espeak-ng", "hibari"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            exact: dict[str, Words] = {}
            for stage in ("transcribe", "align"):
                (folder / stage).mkdir()
            for number, sidecar in enumerate(calls(folder, voices, options.calls)):
                exact[f"{number}"] = words_of(sidecar)
                for stage in ("transcribe", "align"):
                    shutil.copy(sidecar.with_suffix(".wav"), folder / stage / f"{number}.wav")
                for channel, label in enumerate(("SPEAKER_MAIN", "SPEAKER_USER")):
                    text = " ".join(word for word, *_, who in exact[f"{number}"] if who == label)
                    (folder / "align" / f"{number}.{channel}.txt").write_text(text)
            for stage, source in (("transcribe", Heard(whisper)), ("align", Aligned(whisper))):
                begin = time.process_time()
                report = transcribe(read_recordings(folder / stage), source)
                seconds = time.process_time() - begin
                found = [errors(exact[key], words_of(folder / stage / f"{key}.json")) for key in exact]
                wrong, total = sum(each[0] for each in found), sum(each[1] for each in found)
                apart = [np.abs(np.concatenate([each[part] for each in found])) * 1000 for part in (2, 3)]
                rows.append([
                    f"{stage}, {voices}", f"{report.seconds / seconds:.1f}", f"{wrong} of {total}",
                    *(f"{np.median(part):.0f} and {np.percentile(part, 95):.0f} ms" for part in apart),
                ])  # fmt: skip
    support.write_section(
        TITLE,
        "python -m tools.bench.words",
        [
            f"{support.machine()}. Processor time of one thread, without that of decoding, which other processes do. "
            f"Whisper tiny.en in 8 bits; {options.calls} calls of two channels by each synthesiser, from the shipped "
            "dialogues, with overlaps and backchannels; both channels are heard. Times are compared where the words "
            f"agree: median and 95th percentile of what they are off by. {options.note}".strip(),
        ],
        [["stage and speech", "hours per hour and core", "wrong words", "starts", "ends"], *rows],
    )


if __name__ == "__main__":
    main()
