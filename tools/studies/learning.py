"""Reproduce the paper's ablations within minutes, on an artificial language.

    python -m tools.studies.learning all --out learning        # or: depth, delay, monologue, steps, forgetting
    python -m tools.studies.learning plot --out learning

Writes one JSON file per experiment and seed; `docs/learning.md` says what they show. The language is artificial, but
has the properties that the comparisons depend on: words of three sounds, a grammar that depends on a topic, four
speakers, and acoustic codes that depend on the present and the next sound, partly on chance, and on each other within a
frame.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax import lm
from moshijax.lm import LMConfig, layouts, losses
from moshijax.lm.losses import LossConfig
from moshijax.lm.transforms import helium_to_moshi
from moshijax.nn.transformer import TransformerConfig
from moshijax.tokens import BOS, EPAD, PAD, UNGENERATED, ZERO
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup, make_optimizer
from moshijax.train.tasks.lm import TEXT_OWNS

FRAMES, ROWS, CARD, TEXT_CARD, CODEBOOKS = 48, 16, 32, 32, 4
WORDS, SOUNDS, TOPICS, FIRST = 24, 10, 3, 4  # words are the text pieces FIRST, FIRST + 1, ...
SILENCE = SOUNDS


class World:
    """The artificial language: how words sound and follow each other."""

    def __init__(self, seed: int = 0):
        random = np.random.default_rng(seed)
        triples = [(a, b, c) for a in range(SOUNDS) for b in range(SOUNDS) for c in range(SOUNDS) if a != b != c]
        self.spelling = np.array([triples[i] for i in random.choice(len(triples), WORDS, replace=False)])
        self.grammar = np.zeros((TOPICS, WORDS, WORDS))
        for topic in range(TOPICS):
            for word in range(WORDS):
                following = random.choice(WORDS, 3, replace=False)
                self.grammar[topic, word, following] = (0.6, 0.3, 0.1)
        # What is written follows another grammar than what is said.
        self.written = np.zeros((WORDS, WORDS))
        for word in range(WORDS):
            self.written[word, random.choice(WORDS, 4, replace=False)] = (0.5, 0.3, 0.15, 0.05)
        self.by_sounds = {tuple(int(x) for x in sounds): word for word, sounds in enumerate(self.spelling)}

    def spoken(self, random: np.random.Generator, rows: int = ROWS, frames: int = FRAMES) -> np.ndarray:
        """Yield grids [rows, 1 + CODEBOOKS, frames]: text, semantic codes, acoustic codes."""
        grids = np.empty((rows, 1 + CODEBOOKS, frames), np.int32)
        for grid in grids:
            topic, speaker = random.integers(TOPICS), random.integers(4)
            text, sound = np.full(frames + 9, PAD), np.full(frames + 9, SILENCE)
            at, word = int(random.integers(1, 3)), int(random.integers(WORDS))
            while at < frames + 4:
                text[at], sound[at : at + 3] = FIRST + word, self.spelling[word]
                if text[at - 1] == PAD:
                    text[at - 1] = EPAD
                at += 3 + int(random.choice(3, p=(0.3, 0.5, 0.2)))
                word = int(random.choice(WORDS, p=self.grammar[topic, word]))
            now, following = sound[:frames], sound[1 : frames + 1]
            chance = random.integers(4, size=frames)
            first = (7 * now + 3 * following + 5 * speaker + 8 * chance) % CARD
            second = np.where(random.random(frames) < 0.1, random.integers(CARD, size=frames), (5 * first + now) % CARD)
            third = (first + 3 * second + speaker) % CARD
            grid[:] = text[:frames], now, first, second, third
        return grids

    def texts(self, random: np.random.Generator, rows: int = ROWS, frames: int = FRAMES) -> np.ndarray:
        """Yield grids of text alone, from the written grammar."""
        grids = np.full((rows, 1 + CODEBOOKS, frames), ZERO, np.int32)
        for grid in grids:
            word = int(random.integers(WORDS))
            grid[0, 0] = BOS
            for at in range(1, frames):
                grid[0, at] = FIRST + word
                word = int(random.choice(WORDS, p=self.written[word]))
        return grids

    def heard(self, sounds: np.ndarray) -> tuple[list[int], float]:
        """Return the words in a row of semantic codes, and the fraction of its sounds that belong to none."""
        words, lost, at = [], 0, 0
        while at < len(sounds):
            word = self.by_sounds.get(tuple(int(x) for x in sounds[at : at + 3]))
            if word is not None:
                words.append(word)
            elif sounds[at] != SILENCE and at + 3 <= len(sounds):
                lost += 1
            at += 3 if word is not None else 1
        spoken = 3 * len(words) + lost
        return words, lost / spoken if spoken else 1.0

    def surprise(self, words: list[int]) -> float:
        """Return the nats per word of a sentence under the grammar of its most likely topic (5 % unknown)."""
        if len(words) < 2:
            return float("nan")
        steps = [0.95 * self.grammar[:, a, b] + 0.05 / WORDS for a, b in zip(words, words[1:], strict=False)]
        total = np.log(np.mean(np.exp(np.sum(np.log(steps), axis=0))))
        return float(-total / (len(words) - 1))


def model_of(layout: lm.StreamLayout, weights_per_step: bool = True, hidden: int = 96) -> LMConfig:
    stack = dict(gating="silu", norm="rms_norm_f32", precision="default")
    depth = TransformerConfig(
        dim=32, num_layers=2, num_heads=2, hidden_dim=hidden, positional_embedding="none", **stack
    )
    temporal = TransformerConfig(dim=64, num_layers=2, num_heads=4, hidden_dim=128, context=FRAMES, **stack)
    joined = lm.DepthConfig(depth, weights_per_step=weights_per_step, multi_linear=weights_per_step)
    return LMConfig(layout, CARD, TEXT_CARD, temporal, joined if layout.dep_q else None)


def visible(params: Any, independent: bool) -> Any:
    """Return the parameters; for `independent` heads, without the tables that show a row the others of its frame."""
    if not independent:
        return params
    tables = ("text_embedding", "audio_embedding")
    zeros = {name: jax.tree.map(jnp.zeros_like, params["depth"][name]) for name in tables}
    return {**params, "depth": {**params["depth"], **zeros}}


@dataclasses.dataclass
class Trained:
    config: LMConfig
    params: Any
    independent: bool = False


def train(
    config: LMConfig,
    batch: Callable[[np.random.Generator], np.ndarray],
    steps: int,
    seed: int,
    loss: LossConfig,
    params: Any = None,
    independent: bool = False,
    text: Callable[[np.random.Generator], np.ndarray] | None = None,
    text_ratio: float = 0.0,
    one_state: bool = False,
    rate: float = 3e-3,
) -> Trained:
    """Train with audio steps, and text steps where floor(n ratio) grows; with two optimiser states, or one for both."""
    params = lm.init(config, jax.random.key(seed)) if params is None else params
    flat = flatten_dict(params, sep="/")
    optimizer = OptimizerConfig(rate, warmup_steps=20, weight_decay=0.1)
    audio = dataclasses.replace(
        optimizer, groups=(ParameterGroup("text", "^(text_embedding|text_head)/", learning_rate_scale=0.75),)
    )
    owned = {"audio": tuple(flat), "text": tuple(p for p in flat if p.startswith(TEXT_OWNS))}
    if one_state or not config.layout.n_q:
        owned["text"] = owned["audio"]
    transforms = {"audio": make_optimizer(audio if config.layout.n_q else optimizer, owned["audio"], steps)}
    transforms["text"] = transforms["audio"] if one_state else make_optimizer(optimizer, owned["text"], steps)
    states = {name: transforms[name].init({p: flat[p] for p in owned[name]}) for name in transforms}

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
    def update(kind: str, flat: Any, state: Any, codes: Any, step: Any) -> Any:
        def value(mine: Any) -> Any:
            whole = unflatten_dict({**flat, **mine}, sep="/")
            divisors = losses.denominators(config, loss, codes, text_only=kind == "text")
            scores = lm.score(config, visible(whole, independent), codes, text_only=kind == "text")
            return losses.total(loss, losses.numerators(config, loss, scores, codes, kind == "text"), divisors)

        mine = {p: flat[p] for p in owned[kind]}
        found, grads = jax.value_and_grad(value)(mine)
        changes, state = transforms[kind].update(grads, state, mine, step=step)
        return {**flat, **optax.apply_updates(mine, changes)}, state, found

    flat = {path: jnp.array(leaf) for path, leaf in flat.items()}
    for n in range(steps):
        kind = "text" if int((n + 1) * text_ratio + 1e-9) > int(n * text_ratio + 1e-9) else "audio"
        make = text if kind == "text" else batch
        codes = make(np.random.default_rng([seed, n, kind == "text"]))
        slot = "audio" if one_state else kind
        flat, states[slot], found = update(kind, flat, states[slot], codes, n)
        if not np.isfinite(found):
            raise SystemExit(f"the loss is {found} at step {n}")
    return Trained(config, unflatten_dict(flat, sep="/"), independent)


def held_out(model: Trained, batch: Callable[[np.random.Generator], np.ndarray], batches: int = 8) -> dict[str, float]:
    """Return the nats per token of every row, and per frame of all audio rows together, on batches of another seed."""

    @jax.jit
    def sums(params: Any, codes: Any) -> Any:
        scores = lm.score(model.config, visible(params, model.independent), codes)
        return losses.stream_statistics(model.config, scores, codes)

    total: dict[str, np.ndarray] = {}
    for n in range(batches):
        found = jax.device_get(sums(model.params, batch(np.random.default_rng([10**6, n]))))
        for name, parts in found.items():
            total[name] = total.get(name, 0) + np.array([parts["nll"], parts["count"]])
    nats = {name: float(nll / count) for name, (nll, count) in total.items() if count}
    rows = [value for name, value in nats.items() if name.startswith("model_")]
    return {**nats, "audio_frame": float(sum(rows)), "audio_perplexity": float(np.exp(np.mean(rows)))}


def text_perplexity(model: Trained, world: World, batches: int = 4) -> float:
    """Return the perplexity of written text."""

    @jax.jit
    def sums(params: Any, codes: Any) -> Any:
        nll = lm.score(model.config, params, codes, text_only=True).nll[:, 0, 2:]  # from the second word on
        return jnp.sum(nll), nll.size

    rows = model.config.layout.num_streams
    found = [sums(model.params, world.texts(np.random.default_rng([10**6, n]))[:, :rows]) for n in range(batches)]
    return float(np.exp(sum(float(a) for a, _ in found) / sum(b for _, b in found)))


def speak(model: Trained, world: World, with_text: bool, rows: int = 128, seed: int = 0) -> dict[str, float]:
    """Sample sequences from nothing and listen to their words."""
    config = model.config
    steps = FRAMES + config.layout.max_delay + 1
    state = lm.init_generation(config, model.params, rows)
    sampling = lm.Sampling(0.8, 0.8, 0, 0, seed=seed).rows(rows, CARD)
    force = np.full((rows, 1 + config.layout.dep_q), UNGENERATED, np.int32)
    if not with_text:
        force[:, 0] = ZERO

    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def step(state: Any, _: Any) -> Any:
            force_BK = jnp.asarray(force)
            return lm.generate_step(config, params, state, None, sampling, force_BK=force_BK, top_k_limit=CARD)

        return jax.lax.scan(step, state, None, length=steps)[1]

    out = np.asarray(run(model.params, state))[config.layout.max_delay + 1 :]  # [T, B, K]
    heard = [world.heard(out[:, row, 1]) for row in range(rows)]
    surprises = np.array([world.surprise(words) for words, _ in heard])
    return {
        "surprise_per_word": float(np.nanmean(surprises)),
        "words_per_row": float(np.mean([len(words) for words, _ in heard])),
        "lost_sounds": float(np.mean([lost for _, lost in heard])),
    }


PAPER = LossConfig("paper", text_padding_weight=0.5, semantic_weight=100.0)
EVEN = dataclasses.replace(PAPER, semantic_weight=1.0)


def without_text(grids: np.ndarray) -> np.ndarray:
    grids = grids.copy()
    grids[:, 0] = ZERO
    return grids


def depth(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Compare depth transformer and independent heads, with a delay of 1, of 2, and one per level (table 5 of the
    paper)."""
    found = {}
    for delays in ((0, 0, 1, 1, 1), (0, 0, 2, 2, 2), (0, 0, 1, 2, 3)):
        name = ",".join(map(str, delays[1:]))
        streams = layouts.single_stream(CODEBOOKS, 0).streams
        rows = tuple(dataclasses.replace(s, delay=d) for s, d in zip(streams, delays, strict=True))
        config = model_of(lm.StreamLayout(rows))
        for kind in ("depth transformer", "independent heads"):
            model = train(config, world.spoken, steps, seed, EVEN, independent=kind != "depth transformer")
            found[f"{name} | {kind}"] = held_out(model, world.spoken)
    return found


def delay(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Compare no acoustic delay, 1 and 2 frames, without text (table 6)."""
    found = {}
    for frames in (0, 1, 2):
        config = model_of(layouts.single_stream(CODEBOOKS, frames))
        model = train(config, lambda r: without_text(world.spoken(r)), steps, seed, EVEN)
        nats = held_out(model, lambda r: without_text(world.spoken(r)))
        found[f"delay {frames}"] = {**nats, **speak(model, world, with_text=False)}
    return found


def monologue(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Compare models with and without the text of what is said (table 6)."""
    config, found = model_of(layouts.single_stream(CODEBOOKS, 2)), {}
    for name, with_text in (("without text", False), ("inner monologue", True)):
        batch = world.spoken if with_text else lambda r: without_text(world.spoken(r))
        model = train(config, batch, steps, seed, PAPER)
        found[name] = {**held_out(model, batch), **speak(model, world, with_text)}
    return found


def steps_(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Compare depth weights per step, shared ones, and shared ones with the same number of parameters (table 6)."""
    found = {}
    variants = (("per step", True, 96), ("shared", False, 96), ("shared, as many parameters", False, 480))
    for name, own, hidden in variants:
        config = model_of(layouts.single_stream(CODEBOOKS, 2), own, hidden)
        model = train(config, world.spoken, steps, seed, EVEN)
        size = sum(leaf.size for leaf in jax.tree.leaves(lm.abstract(config)["depth"]["layers"]))
        found[name] = {**held_out(model, world.spoken), "depth_layer_parameters": size}
    return found


def forgetting(world: World, seed: int, steps: int) -> dict[str, Any]:
    """Measure the perplexity of written text after audio training with 0, 10 and 50 % of text steps, one state or two.

    All runs have the same number of audio steps.
    """
    text_model = model_of(layouts.text_only())
    helium = train(text_model, world.texts, steps, seed, PAPER, text=lambda r: world.texts(r)[:, :1], text_ratio=1.0)
    found: dict[str, Any] = {"before": {"text_perplexity": text_perplexity(helium, world)}}
    config = model_of(layouts.single_stream(CODEBOOKS, 2))
    fresh = flatten_dict(lm.init(config, jax.random.key(seed + 1)), sep="/")
    flat = helium_to_moshi(text_model, flatten_dict(helium.params, sep="/"), config, fresh)[1]
    for name, ratio, one in (
        ("0 %", 0.0, False),
        ("10 %, two states", 0.1, False),
        ("10 %, one state", 0.1, True),
        ("50 %, two states", 0.5, False),
        ("50 %, one state", 0.5, True),
    ):
        count = round(steps / (1 - ratio))
        start = unflatten_dict({p: jnp.array(leaf) for p, leaf in flat.items()}, sep="/")
        kinds = dict(text=world.texts, text_ratio=ratio, one_state=one, rate=1e-3)
        model = train(config, world.spoken, count, seed, PAPER, start, **kinds)
        found[name] = {"text_perplexity": text_perplexity(model, world), **held_out(model, world.spoken)}
    return found


EXPERIMENTS = {"forgetting": forgetting, "monologue": monologue, "depth": depth, "steps": steps_, "delay": delay}


# Experiment -> what is drawn, and what of it is good.
SHOWN = {
    "depth": ("audio_frame", "audio, nats per frame (less is better)"),
    "delay": ("surprise_per_word", "words spoken, nats per word (less is better)"),
    "monologue": ("surprise_per_word", "words spoken, nats per word (less is better)"),
    "steps": ("audio_frame", "audio, nats per frame (less is better)"),
    "forgetting": ("text_perplexity", "perplexity of written text (less is better)"),
}


def plot(folder: Path) -> None:
    """Draw `learning.png`: a bar for every variant, the mean of the seeds, and a dot for each seed."""
    from moshijax.report import plots

    found = {name: sorted(folder.glob(f"{name}.*.json")) for name in SHOWN}
    found = {name: paths for name, paths in found.items() if paths}
    figure, axes = plots.new_figure(11, 2.2 * len(found), len(found), 1)
    for axis, (name, paths) in zip(axes[:, 0], found.items(), strict=True):
        key, title = SHOWN[name]
        runs = [json.loads(path.read_text())["results"] for path in paths]
        variants = list(runs[0])[::-1]
        values = np.array([[run[variant][key] for variant in variants] for run in runs])
        axis.barh(variants, values.mean(axis=0), color=plots.COLOURS[0], height=0.6)
        for row in values:
            axis.plot(row, variants, ".", color=plots.COLOURS[1])
        axis.set_title(f"{name}: {title}", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    figure.savefig(folder / "learning.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all", "plot"])
    parser.add_argument("--out", type=Path, default=Path("learning"))
    parser.add_argument("--steps", type=int, default=400, help="audio steps of every run")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    world = World()
    for name in EXPERIMENTS if arguments.experiment == "all" else [arguments.experiment]:
        if name == "plot":
            plot(arguments.out)
            break
        for seed in range(arguments.seeds):
            begin = time.perf_counter()
            found = EXPERIMENTS[name](world, seed, arguments.steps)
            record = {"steps": arguments.steps, "seconds": time.perf_counter() - begin, "results": found}
            (arguments.out / f"{name}.{seed}.json").write_text(json.dumps(record, indent=1) + "\n")
            print(f"{name}, seed {seed}: {record['seconds']:.0f} s", flush=True)
            for variant, values in found.items():
                print(f"  {variant}: " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)


if __name__ == "__main__":
    main()
