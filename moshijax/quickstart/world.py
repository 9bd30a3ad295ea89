"""The calls of the small world: which voices are trained on, which are held out, and what they say."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from moshijax import files
from moshijax.shipped import folder

if TYPE_CHECKING:
    from moshijax.data.synthesis.dialogue import Dialogue
    from moshijax.data.synthesis.world import CallRanges, World

CALL_SECONDS = 4.8

# espeak-ng timbre variants. The model speaks with one that no user has; held-out users have voices that no training
# call has: clear ones, rough ones (creaky or distorted), and clear ones with a British accent.
MODEL_VARIANT = "Andrea"
TRAINED = (
    "f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m5", "m7", "m8", "Alex", "Alicia", "Andy", "Denis", "Gene",
    "Jacky", "Lee", "Michael", "Mario", "adam", "anika", "antonio", "belinda", "benjamin", "david", "ed", "john",
    "linda", "marcelo", "norbert", "paul", "pablo", "rob", "robert", "steph", "travis", "victor", "zac",
)  # fmt: skip
GROUPS = {
    "clear": ("en-us", ("f4", "m6")),
    "rough": ("en-us", ("Annie", "Mike", "steph3")),
    "accented": ("en", ("f4", "m6")),
}


def load() -> tuple[World, World]:
    """Return the world that is trained on, and the same questions with the held-out unrelated speech."""
    from moshijax.data.synthesis.world import parse_world

    def read(name: str) -> World:
        return parse_world(files.read_text(folder("data/small_world") / name), name)

    trained = read("world.txt")
    return trained, replace(trained, unrelated=read("unrelated_heldout.txt").unrelated)


def ranges(language: str = "en-us", variants: tuple[str, ...] = TRAINED) -> CallRanges:
    """Return what calls are drawn from, with users of the given voices."""
    from moshijax.data.synthesis.voices import Cast, EspeakVoice, espeak_voice
    from moshijax.data.synthesis.world import CallRanges

    user = partial(
        espeak_voice, variants=variants, language=language, rate=(145, 205), pitch=(25, 75), pitch_range=(30, 70)
    )
    return CallRanges(
        duration=CALL_SECONDS,
        lead=(0.1, 1.2),
        gap=(0.35, 0.35),
        gain_db=(-8.0, 6.0),
        snr_db=(15.0, 40.0),
        cast=Cast(EspeakVoice("en-us", MODEL_VARIANT, 175, 50, 50), user),
    )


def dense_speech(world: World, count: int, seed: int) -> list[Dialogue]:
    """Draw recordings with speech on both channels nearly all the time: a codec learns most from these in a short time.

    The user says two or three of the world's sentences, and the model speaks over each of them.
    """
    from moshijax.data.synthesis.dialogue import Dialogue, Utterance

    drawn = ranges()
    sentences = [*world.unrelated, *(question for question, _ in world.questions)]
    answers = [answer for _, answer in world.questions]
    recordings = []
    for index in range(count):
        rng = random.Random(f"{seed} speech {index}")
        utterances = []
        for _ in range(rng.randint(2, 3)):
            utterances.append(Utterance("user", rng.choice(sentences), gap=rng.uniform(0.1, 0.4)))
            utterances.append(Utterance("model", ", ".join(rng.sample(answers, 2)), kind="backchannel", at=0.05))
        recordings.append(
            Dialogue(
                id=f"speech-{index:05d}",
                utterances=tuple(utterances),
                model_voice=drawn.cast.model,
                user_voice=drawn.cast.user(rng),
                lead=round(rng.uniform(0.05, 0.5), 3),
                tail=round(rng.uniform(0.1, 0.6), 3),
                gain_db=round(rng.uniform(*drawn.gain_db), 2),
                snr_db=round(rng.uniform(*drawn.snr_db), 1),
            )
        )
    return recordings


def training_calls(world: World, answered: int, unanswered: int, silent: int, seed: int) -> list[Dialogue]:
    """Draw calls with a question, with unrelated speech (half of it spliced from two sentences), and with silence."""
    from moshijax.data.synthesis.world import draw_calls

    return draw_calls(world, answered, unanswered, silent, seed, replace(ranges(), spliced=0.5), prefix="train")


def heldout_calls(world: World, per_group: int, seed: int) -> list[Dialogue]:
    """Draw `per_group` questions and as many unrelated utterances per group of voices, and silent users in "clear"."""
    from moshijax.data.synthesis.world import draw_calls

    calls = []
    for group, (language, variants) in GROUPS.items():
        silent = max(1, per_group // 4) if group == "clear" else 0
        drawn = draw_calls(world, per_group, per_group, silent, seed, ranges(language, variants), prefix=group)
        calls += [replace(call, meta={**call.meta, "group": group}) for call in drawn]
    return calls
