"""Reference numbers of speech synthesis: the state machine and the generator around it, on small models."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from moshi.conditioners import ConditionAttributes
from moshi.models import tts

from tests.parity import weights_by_name
from tools.reference.language import LMS, build_lm, voice
from tools.reference.models import MARGIN, MARGINS, save

_CONTROL = {"type": "lut", "lut": {"n_bins": 3, "dim": 4, "tokenizer": "noop", "possible_values": ["ok", "no"]}}

#: name: (config, tts settings, guidance, frames of a voice prefix per row)
MODELS = {
    # Like the 1.6B: a voice by cross-attention, a second text stream two words ahead.
    "tts_voice": (
        {
            **LMS["lm_demux"],
            "cross_attention": True,
            "conditioners": {"control": _CONTROL, "speaker_wavs": {"type": "tensor", "tensor": {"dim": 6}}},
            "fuser": {"sum": ["control"], "cross": ["speaker_wavs"], "prepend": []},
        },
        {"delay_steps": 4, "second_stream_ahead": 2, "max_padding": 5, "padding_bonus": 0.3},
        1.0,
        None,
    ),
    # Like the 0.75B: one text stream, a voice by a prefix of audio, guidance that hides text and prefix.
    "tts_prefix": (
        {
            **{key: value for key, value in LMS["lm_demux"].items() if key != "demux_second_stream"},
            "conditioners": {"control": _CONTROL},
            "fuser": {"sum": ["control"], "cross": [], "prepend": []},
        },
        {"delay_steps": 3, "second_stream_ahead": 0, "max_padding": 4, "padding_bonus": 0.0},
        1.6,
        (6, 9),
    ),
}


def entries(seed: int, count: int, card: int) -> list[tts.Entry]:
    """Draw words of 1 to 5 pieces, some with padding after them, and some pauses between."""
    draws = weights_by_name.tokens(seed, (count, 8), 1000)
    out = []
    for index, draw in enumerate(draws):
        if draw[0] % 7 == 0:
            out.append(tts.Entry([], "", padding=1 + int(draw[1] % 4)))
        pieces = [int(piece) for piece in draw[3 : 4 + draw[2] % 5] % card]
        out.append(tts.Entry(pieces, f"w{index}", padding=int(draw[1] % 3) if draw[0] % 3 == 0 else 0))
    return out


@torch.no_grad()
def make(out: Path, name: str) -> None:
    config, settings, guidance, prefix_frames = MODELS[name]
    seed = 200 + list(MODELS).index(name)
    model, shapes = build_lm(copy.deepcopy(config), seed)
    machine = tts.StateMachine(
        tts.TokenIds(model.text_card + 1),
        second_stream_ahead=settings["second_stream_ahead"],
        max_padding=settings["max_padding"],
        initial_padding=2,
    )
    engine = tts.TTSModel(
        lm=model, mimi=None, tokenizer=None, voice_suffix="", voice_repo="", machine=machine, temp=0.0,
        delay_steps=settings["delay_steps"], cfg_coef=guidance, n_q=config["n_q"], max_gen_length=160,
        padding_bonus=settings["padding_bonus"],
    )  # fmt: skip
    attributes = [
        ConditionAttributes(
            text={"control": ("ok", "no")[row]},
            tensor={"speaker_wavs": voice(row, 6)} if config.get("cross_attention") else {},
        )
        for row in range(2)
    ]
    for attempt in range(200):
        base = 50_000 * (seed + 1) + 100 * attempt
        scripts = [entries(base + row, (7, 10)[row], model.text_card) for row in range(2)]
        prefixes = None
        if prefix_frames is not None:
            prefixes = []
            for row, frames in enumerate(prefix_frames):
                codes = weights_by_name.tokens(base + 10 + row, (1 + config["n_q"], frames), config["card"])
                codes[0] = -1
                prefixes.append(torch.from_numpy(codes))
        MARGINS.start()
        result = engine.generate(copy.deepcopy(scripts), attributes, prefixes=prefixes)
        if MARGINS.smallest > MARGIN and None not in result.end_steps:
            break
    else:
        raise SystemExit(f"{name}: no script with margins above {MARGIN}")
    frames = torch.cat(result.frames, -1).numpy().astype(np.int32)
    logged = np.array(result.logged_text_tokens)  # [B, steps, 2]
    print(f"  attempt {attempt}, {frames.shape[2]} frames, ended at {result.end_steps}, margin {MARGINS.smallest:.4f}")
    print(f"  consumed {result.all_consumption_times}, predicted {np.unique(logged[..., 0], return_counts=True)}")
    arrays = {"frames": frames, "predicted": logged[..., 0].astype(np.int32), "fed": logged[..., 1].astype(np.int64)}
    if prefixes is not None:
        arrays |= {f"prefix_{row}": prefix.numpy().astype(np.int32) for row, prefix in enumerate(prefixes)}
    if config.get("cross_attention"):
        prepared = model.condition_provider.prepare(attributes)["speaker_wavs"]
        arrays |= {"speaker_wavs": prepared.tensor.numpy(), "speaker_wavs_mask": prepared.mask.numpy()}
    description = {
        "kind": "tts",
        "config": config,
        "seed": seed,
        "tensors": shapes,
        "settings": settings,
        "guidance": guidance,
        "scripts": [[dataclasses.asdict(entry) for entry in script] for script in scripts],
        "end_steps": result.end_steps,
        "consumption_times": result.all_consumption_times,
        "transcripts": result.all_transcripts,
        "margin": MARGINS.smallest,
    }
    save(out, name, description, arrays)


def makers(out: Path) -> dict[str, Callable[[], None]]:
    """Return the makers of fixtures by name."""
    return {name: partial(make, out, name) for name in MODELS}
