"""Sets of synthetic voices and random draws from them."""

from __future__ import annotations

import random

from moshijax.data.synthesis.dialogue import Voice

# Timbre variants that are clear to a human listener, and far enough from each other to be different people.
CLEAR_VARIANTS = (
    "f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m5", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy", "Denis",
    "Gene", "Jacky", "Lee", "Michael", "adam", "anika", "antonio", "belinda", "benjamin", "david", "ed", "john",
    "linda", "paul", "pablo", "rob", "robert", "steph", "travis", "zac",
)  # fmt: skip


def random_voice(
    rng: random.Random,
    variants: tuple[str, ...] = CLEAR_VARIANTS,
    language: str = "en-us",
    rate: tuple[int, int] = (140, 200),
    pitch: tuple[int, int] = (30, 70),
    pitch_range: tuple[int, int] = (30, 70),
) -> Voice:
    """Draw a voice with a random variant, rate, pitch and pitch range; bounds are inclusive."""
    return Voice(language, rng.choice(variants), rng.randint(*rate), rng.randint(*pitch), rng.randint(*pitch_range))
