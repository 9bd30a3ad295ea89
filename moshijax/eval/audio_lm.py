"""sWUGGY, sBLIMP, spoken StoryCloze and other sets of pairs: is what is right more likely to a model of audio?"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import files, weights
from moshijax.data.encoder import CodecEncoder
from moshijax.data.records import digest, tree_digest
from moshijax.errors import ConfigError, DataError
from moshijax.eval import pairs
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.report.page import Page
from moshijax.runtime import audio
from moshijax.train.run.init_from import meanings_at

_AT_ONCE = 64  # recordings that are read and encoded at a time
_SHOWN = 3  # pairs of either end on the page
_GOLD = ("id", "filename", "voice", "correct")  # columns that every gold.csv has


@dataclass(frozen=True)
class AudioLM(Evaluation):
    """Share of pairs in which the right recording scores better than the wrong one; half a point if both score alike.

    `moshijax.eval.pairs` says how a recording is scored. `pairs` is one of:

    - JSON lines `{"id", "right", "wrong"}`, the two being paths of recordings relative to the file, and optionally
      "group", a name under which figures are counted too. Lines with the same id, such as those of several voices, are
      averaged first, so that each id counts once.
    - a `gold.csv` of the ZeroSpeech challenge 2021 (sWUGGY, sBLIMP), beside its recordings.

    Attributes:
      model: weights or a run of a language model (`moshijax.weights.load_lm`).
      codec: that the model was trained with: a run, or published weights (`moshijax.weights.load_mimi`).
      pairs: as above.
      stream: whose audio is scored, "model" or "user"; None: the user's where the model has any, as published.
      semantic_weight: of codebook 0 within a frame; the others have 1.
    """

    model: str
    codec: str
    pairs: str
    stream: str | None = None
    semantic_weight: float = pairs.SEMANTIC_WEIGHT

    def __post_init__(self) -> None:
        if not 0 <= self.semantic_weight < float("inf"):
            raise ConfigError(f"semantic_weight {self.semantic_weight} must be 0 or more")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; `scores.json` is written to `out`: the score of every recording."""
        asked, sha256 = read_pairs(self.pairs)
        config, params = weights.load_lm(self.model)
        stream = pairs.stream_of(config, self.stream)
        encoder = _encoder(self, config, len(config.layout.rows(stream)))
        recordings = list(dict.fromkeys(path for pair in asked for path in (pair.right, pair.wrong)))
        progress(0, None, "encoding")
        grids = [pairs.grid(config, stream, codes, encoder.silence()) for codes in _codes(encoder, recordings)]
        found: dict[Path, float] = {}
        for path, score in zip(
            recordings, pairs.score_grids(config, params, stream, grids, self.semantic_weight), strict=True
        ):
            found[path] = score
            progress(len(found), len(recordings), "recordings")
        files.write_json(out / "scores.json", {str(path): score for path, score in found.items()})
        results = Results(
            f"Pairs of {self.pairs}",
            f"Negative log likelihood of the {stream}'s audio per frame; the lower one of a pair is what the model "
            "takes for right. Chance is 50 %.",
        )
        for name, calls in points(asked, found).items():
            results.add(name, calls)
        results.sections.append(partial(_draw, asked=asked, found=found, results=results))
        codes = hashlib.sha256(b"".join(grid.tobytes() for grid in grids)).hexdigest()
        model = digest(repr(config), tree_digest(params))
        more = {"codec": encoder.sha256, "codes": codes, "stream": stream}
        results.provenance = self.provenance(model, {"pairs": sha256}, **more)
        return results


@dataclass(frozen=True)
class Pair:
    """Two recordings that differ in being right.

    Attributes:
      id: pairs of the same one are averaged first.
      group: further figure that it counts in, "" for none.
      right, wrong: paths.
    """

    id: str
    group: str
    right: Path
    wrong: Path


def read_pairs(path: str | Path) -> tuple[list[Pair], str]:
    """Read a set of pairs (`AudioLM`), and the sha256 of its text.

    Raises:
      DataError: it cannot be read, holds no pair or one without a counterpart, or recordings are not there.
    """
    path = Path(path)
    text = files.read_text(path, "set of pairs")
    found = list(_gold(path, text) if path.suffix == ".csv" else _lines(path, text))
    if not found:
        raise DataError(f'{path} holds no pairs: it needs one JSON object with "id", "right" and "wrong" per line')
    missing = [file for pair in found for file in (pair.right, pair.wrong) if not file.is_file()]
    if missing:
        raise DataError(f"{path}: {len(missing)} recordings are not there, such as {missing[0]}; fetch them beside it")
    return found, hashlib.sha256(text.encode()).hexdigest()


def _lines(path: Path, text: str) -> Iterator[Pair]:
    known = set()
    for number, line in enumerate(files.lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            read = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); write one object per line") from None
        if not isinstance(read, dict) or not all(isinstance(read.get(n), str) for n in ("id", "right", "wrong")):
            raise DataError(f'{where} has no strings "id", "right" and "wrong"; add them')
        if not isinstance(read.get("group", ""), str):
            raise DataError(f'{where}: "group" {read["group"]!r} must be a string')
        pair = Pair(read["id"], read.get("group", ""), path.parent / read["right"], path.parent / read["wrong"])
        if pair.right == pair.wrong:
            raise DataError(f'{where}: "right" and "wrong" are both {read["right"]!r}; a pair needs two recordings')
        if pair in known:
            raise DataError(f"{where} repeats a pair ({read['right']!r}, {read['wrong']!r}); remove it")
        known.add(pair)
        yield pair


def _gold(path: Path, text: str) -> Iterator[Pair]:
    """Pair the recordings of one id and voice, as the scripts of the challenge do."""
    rows = list(csv.DictReader(files.lines(text)))
    if absent := [name for name in _GOLD if rows and name not in rows[0]]:
        raise DataError(f"{path} has no column {', '.join(absent)}: it is no gold.csv of ZeroSpeech 2021")
    sets: dict[tuple[str, ...], dict[str, list[Path]]] = defaultdict(lambda: {"1": [], "0": []})
    for number, row in enumerate(rows, 2):
        if row["correct"] not in ("0", "1") or not row["filename"]:
            raise DataError(f"{path}, line {number}: correct is {row['correct']!r}, it must be 0 or 1, with a filename")
        if "subtype" in row:  # sBLIMP numbers the pairs of each subtype apart
            name, group = f"{row['subtype']} {row['id']}", row.get("type") or ""
        else:
            rare = row.get("frequency") in ("oov", "0", "0.0")
            name, group = row["id"], "" if row.get("frequency") is None else "rare" if rare else "in_vocabulary"
        recording = path.parent / Path(row["filename"]).with_suffix(".wav")
        sets[name, group, row["voice"]][row["correct"]].append(recording)
    for (name, group, voice), both in sets.items():
        if not both["1"] or not both["0"]:
            raise DataError(f"{path}: id {name} of voice {voice} has only one side of a pair; restore the other")
        yield from (Pair(name, group, right, wrong) for right, wrong in product(both["1"], both["0"]))


def points(asked: Sequence[Pair], found: Mapping[Path, float]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return per figure, "accuracy" and "<group>/accuracy", what every id adds to it, as `Results.add` takes it."""
    by_id: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair in asked:
        right, wrong = found[pair.right], found[pair.wrong]
        by_id[pair.group, pair.id].append(0.5 if right == wrong else float(right < wrong))
    figures: dict[str, dict[str, tuple[float, float]]] = {"accuracy": {}}
    for (group, name), scores in by_id.items():
        own = figures.setdefault(f"{group}/accuracy", {}) if group else {}
        for calls, key in ((figures["accuracy"], f"{group} {name}".strip()), (own, name)):
            calls[key] = (float(np.mean(scores)), 1.0)
    return figures


def _encoder(settings: AudioLM, config: Any, codebooks: int) -> CodecEncoder:
    """The codec, as far as it fits the model."""
    encoder = CodecEncoder.load(settings.codec)
    trained = meanings_at(Path(settings.model)).get("codec", encoder.sha256)
    if trained != encoder.sha256:
        raise ConfigError(
            f"codec {settings.codec} has the sha256 {encoder.sha256[:12]}..., the model {settings.model} was trained "
            f"with {trained[:12]}...: its codes mean something else; give the codec of the model's data"
        )
    codebooks = max(codebooks, *(len(config.layout.rows(who)) for who in ("model", "user")))
    if encoder.num_codebooks < codebooks:
        raise ConfigError(
            f"codec {settings.codec} has {encoder.num_codebooks} codebooks, the model takes {codebooks}; give the "
            "codec of the model's data"
        )
    return encoder


def _codes(encoder: CodecEncoder, recordings: Sequence[Path]) -> Iterator[np.ndarray]:
    for first in range(0, len(recordings), _AT_ONCE):
        some = [audio.read_mixed(path, encoder.sample_rate) for path in recordings[first : first + _AT_ONCE]]
        yield from encoder.encode(some)


def _draw(page: Page, asked: Sequence[Pair], found: Mapping[Path, float], results: Results) -> None:
    from moshijax.report import plots

    margins = np.array([found[pair.wrong] - found[pair.right] for pair in asked])
    page.section("How surely", "Score of the wrong recording minus that of the right one: above 0 the model is right.")
    figure, axes = plots.new_figure(11, 2.6)
    axes[0, 0].hist(margins, bins=60, color=plots.COLOURS[0])
    axes[0, 0].axvline(0, color=plots.INK, linewidth=1, linestyle="--")
    page.figure(figure, f"Nats per frame, {len(asked)} pairs.")
    order = np.argsort(margins)
    for title, chosen in (("Most surely wrong", order[:_SHOWN]), ("Most surely right", order[::-1][:_SHOWN])):
        page.section(title)
        for n in chosen:
            pair = asked[n]
            page.text(f"{pair.id} {pair.group}: {margins[n]:+.3f}")
            for side, path in (("right", pair.right), ("wrong", pair.wrong)):
                pcm, rate = audio.read(path)
                page.clips([(side, f"{found[path]:.3f}", pcm)], rate)
