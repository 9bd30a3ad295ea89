"""The form of `artifact.json`: one description of its values, and the check against it.

A rule is a type (`str`, `bool`, `dict`), a `Number`, a set of choices, a dict of the fields of an object (further
fields pass), `Every` for objects of any names, a list with one rule for lists of any length or with one for each
element, or `OrNull`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moshijax.annotations import shown

#: Programs and arrays are indexed with int32.
MOST = 2**31 - 1
#: Calls that one program steps.
LARGEST_BATCH = 65_536


@dataclass(frozen=True)
class Number:
    """A finite number within bounds, both included; a whole one unless `kind` is float."""

    low: float
    high: float
    kind: type = int

    def __str__(self) -> str:
        return f"{'a whole number' if self.kind is int else 'a number'} from {self.low:.12g} to {self.high:.12g}"


@dataclass(frozen=True)
class Every:
    """An object of any names, whose values are all of one rule."""

    rule: Any


@dataclass(frozen=True)
class OrNull:
    """A value of a rule, or null."""

    rule: Any


SIZE, COUNT = Number(1, MOST), Number(0, MOST)
FRAMES, SECONDS, RATE = Number(0, 10_000), Number(0, 800, float), Number(1, 1_000_000)
ANY_NUMBER = Number(-1e12, 1e12, float)
DTYPE = {"bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32"}
ARRAYS = Every({"shape": [OrNull(COUNT)], "dtype": DTYPE})

#: The policy of artifacts that answer questions one by one.
ANSWER = "Answer"
#: Of all artifacts.
SCHEMA: dict[str, Any] = {
    "jax": {"tried": [str, str]},
    "platforms": [str],
    "batches": [Number(1, LARGEST_BATCH)],
    "lengths": Every([FRAMES]),
    "files": Every({"bytes": Number(0, 2**53), "sha256": str}),
    "config": {"policy": {"type": {"Conversation", "Recognition", "Synthesis", "Translation", ANSWER}}},
    "audio": {"sample_rate": RATE, "frame_size": RATE, "frame_rate": Number(1e-3, 1e6, float)},
    "sampling": {
        "defaults": Every(ANY_NUMBER),
        "limits": Every([OrNull(ANY_NUMBER), OrNull(ANY_NUMBER)]),
        "top_k_limit": COUNT,
    },
    "inputs": Every(ARRAYS),
    "outputs": Every(ARRAYS),
    "weights": {"program_dtypes": Every(Every(DTYPE)), "tensors": ARRAYS},
}
#: Of artifacts that take calls.
CALLS: dict[str, Any] = {
    "conditions": Every(dict),
    "config": {
        "codec": dict,
        "lm": {"temporal": {"context": OrNull(SIZE)}},
        "guidance": OrNull({"coefficient": ANY_NUMBER, "masked_until": FRAMES, "text": bool}),
    },
    "layout": {
        "max_delay": FRAMES,
        "streams": [
            {
                "name": str,
                "kind": {"text", "audio"},
                "codebook": OrNull(FRAMES),
                "delay": FRAMES,
                "given": bool,
                "generated": bool,
                "card": SIZE,
            }
        ],
    },
    "text": {"special": {"pad": COUNT, "epad": COUNT, "bos": COUNT, "eos": COUNT}},
}
#: Of artifacts that answer questions.
ANSWERS: dict[str, Any] = {
    "config": {"omni": dict, "vocoder": dict},
    "prompt": {"before": [COUNT], "after": [COUNT], "rows": SIZE, "row_samples": SIZE, "trim": bool},
    "text": {"stop": [COUNT]},
    "answer": {"clip": SIZE, "tokens": SIZE, "omega": SIZE},
    "voice": {"units": SIZE, "hop": SIZE, "reach_units": FRAMES, "reach_frames": FRAMES},
}
#: What the policies of `config.policy` have that the runtime reads.
POLICIES: dict[str, dict[str, Any]] = {
    "Conversation": {},
    "Recognition": {"silence": SECONDS, "text_delay": SECONDS},
    "Synthesis": {"audio_delay": FRAMES, "look_ahead": FRAMES, "max_pieces": FRAMES, "final_padding": FRAMES},
    "Translation": {},
}
#: The two forms of an entry of `conditions`: vectors, and attributes.
VECTORS = {"length": OrNull(FRAMES), "dim": SIZE}
ATTRIBUTES = {"bins": SIZE, "values": OrNull([str])}


def problems(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the content of `artifact.json`: the place, its value and the rule."""
    found = list(_problems(manifest, SCHEMA, ""))
    if not found:
        answers = manifest["config"]["policy"]["type"] == ANSWER
        found = list(_problems(manifest, ANSWERS if answers else CALLS, ""))
    yield from found
    if found:
        return
    if not answers:
        policy = manifest["config"]["policy"]
        yield from _problems(policy, POLICIES[policy["type"]], "config.policy")
        for name, entry in manifest["conditions"].items():
            yield from _problems(entry, ATTRIBUTES if "bins" in entry else VECTORS, f"conditions.{name}")
    needed = ("encode_speech", "prefill", "decode_token", "decode_units") if answers else ("step",)
    for side in ("inputs", "outputs"):
        yield from (f"{side} lacks {name}" for name in needed if name not in manifest[side])
    for name in ("platforms", "batches"):
        if not manifest[name]:
            yield f"{name} is []: must name at least one"
    yield from _contradictions(manifest)
    yield from _contradictions_of_answers(manifest) if answers else _contradictions_of_calls(manifest)


def _contradictions(manifest: dict[str, Any]) -> Iterator[str]:
    """Yield values that do not fit each other."""
    audio, sampling, weights = manifest["audio"], manifest["sampling"], manifest["weights"]
    if abs(audio["frame_size"] * audio["frame_rate"] / audio["sample_rate"] - 1) > 1e-3:
        yield (
            f"audio.frame_size is {audio['frame_size']}: must be the samples of a frame, {audio['sample_rate']} Hz at "
            f"{audio['frame_rate']:.6g} frames per second"
        )
    if set(sampling["defaults"]) != set(sampling["limits"]):
        yield f"sampling.defaults is of {_names(sampling['defaults'])}: must be of {_names(sampling['limits'])}"
    for platform in manifest["platforms"]:
        known = weights["program_dtypes"].get(platform, {})
        for name, spec in weights["tensors"].items():
            if spec["dtype"] not in known:
                yield f"weights.program_dtypes.{platform} lacks {spec['dtype']}, the type of {name}"


def _contradictions_of_calls(manifest: dict[str, Any]) -> Iterator[str]:
    audio = manifest["audio"]
    for side in ("inputs", "outputs"):
        shape = manifest[side]["step"].get("pcm", {"shape": [audio["frame_size"]]})["shape"]
        if shape[-1:] != [audio["frame_size"]]:
            yield f"{side}.step.pcm.shape is {shape}: must end in audio.frame_size, {audio['frame_size']}"
    rows, codes = len(manifest["layout"]["streams"]), manifest["outputs"]["step"].get("codes", {"shape": []})["shape"]
    if codes[-1:] != [rows]:
        yield f"layout.streams has {rows} rows: must have those of outputs.step.codes, {codes}"


def _contradictions_of_answers(manifest: dict[str, Any]) -> Iterator[str]:
    clip, said = manifest["answer"]["clip"], manifest["inputs"]["encode_speech"].get("pcm", {"shape": []})["shape"]
    if said[-1:] != [clip]:
        yield f"inputs.encode_speech.pcm.shape is {said}: must end in answer.clip, {clip}"
    for name in ("prefill", "vocode_chunk"):
        if not manifest["lengths"].get(name):
            yield f"lengths lacks {name}"


def _problems(value: Any, rule: Any, where: str) -> Iterator[str]:
    prefix = f"{where}." if where else ""
    if isinstance(rule, OrNull):
        if value is not None:
            yield from _problems(value, rule.rule, where)
    elif isinstance(rule, dict) and isinstance(value, dict):
        for name, field in rule.items():
            if name in value:
                yield from _problems(value[name], field, prefix + name)
            else:
                yield f"{where or 'it'} lacks {name}"
    elif isinstance(rule, Every) and isinstance(value, dict):
        for name, item in value.items():
            yield from _problems(item, rule.rule, prefix + name)
    elif isinstance(rule, list) and isinstance(value, list) and len(rule) in (1, len(value)):
        for i, item in enumerate(value):
            yield from _problems(item, rule[i if len(rule) > 1 else 0], f"{where}[{i}]")
    elif not _fits(value, rule):
        yield f"{where} is {shown(value)}: must be {_described(rule)}"


def _fits(value: Any, rule: Any) -> bool:
    """Say whether a value without parts fits its rule."""
    if isinstance(rule, Number):
        kinds = int if rule.kind is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and rule.low <= value <= rule.high
    if isinstance(rule, set):
        return isinstance(value, str) and value in rule
    return isinstance(rule, type) and isinstance(value, rule)


def _described(rule: Any) -> str:
    if isinstance(rule, set):
        return f"one of {_names(rule)}"
    if isinstance(rule, list):
        return "a list" if len(rule) == 1 else f"a list of {len(rule)}"
    if isinstance(rule, Number):
        return str(rule)
    return "a text" if rule is str else "true or false" if rule is bool else "an object"


def _names(names: Any) -> str:
    return ", ".join(sorted(names))
