"""Reference numbers of speech translation: how the package's own runner ends an input, and stops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from moshi.run_inference import InferenceState

from tests.parity import weights_by_name
from tools.reference.codec import SMALL_MIMIS, build_mimi
from tools.reference.language import LMS, build_lm
from tools.reference.models import MARGIN, MARGINS, save

EOS, PAD, UNGENERATED = 2, 3, -2
CONFIG = {**LMS["lm_moshi"], "card": 64, "model_type": "hibiki"}
FRAMES = 6
#: Calls (the first only primes the model) at which the text is made to end: well before the input does; so late that it
#: comes back together with the end of the input; after it.
ENDS = {"early": (3, 10), "together": (FRAMES,), "after": (11,)}


def run(model, mimi, waveform: torch.Tensor, ends: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return columns given and returned (UNGENERATED where there is none), call by call, until the runner stops."""
    given, out = [], []
    tokenizer = SimpleNamespace(eos_id=lambda: EOS, id_to_piece=str)

    def on_text(tokens: torch.Tensor) -> None:
        if len(given) - 1 in ends:
            tokens[:] = EOS

    mimi._stop_streaming(), model._stop_streaming()
    state = InferenceState(
        SimpleNamespace(model_type="hibiki"),
        *(mimi, tokenizer, model, 1, 1.0, "cpu"),
        use_sampling=False,
        on_text_hook=on_text,
    )
    step = state.lm_gen.step

    def watched(codes: torch.Tensor):
        given.append(codes[0, :, 0].numpy().copy())
        tokens = step(codes)
        out.append(np.full(1 + model.dep_q, UNGENERATED) if tokens is None else tokens[0, :, 0].numpy())
        if len(given) > 40:
            raise SystemExit("the runner does not stop")
        return tokens

    state.lm_gen.step = watched
    state.run(waveform)
    return {"given": np.stack(given).astype(np.int32), "out": np.stack(out).astype(np.int32)}


@torch.no_grad()
def make(out: Path, name: str) -> None:
    mimi_config, _, _ = SMALL_MIMIS["mimi_small"]
    model, description = build_lm({k: v for k, v in CONFIG.items() if k != "model_type"}, 200)
    model.text_emb.weight[EOS] = model.text_emb.weight[PAD]  # as the package's loader has it for this model
    mimi, tensors = build_mimi(mimi_config, 1, CONFIG["dep_q"])
    for attempt in range(500):
        seeds = list(range(100 * attempt, 100 * attempt + FRAMES))
        waveform = torch.from_numpy(weights_by_name.clip(seeds, mimi.frame_size))[None, None]
        MARGINS.start()
        runs = {kind: run(model, mimi, waveform, ends) for kind, ends in ENDS.items()}
        if MARGINS.smallest > MARGIN:
            break
    else:
        raise SystemExit(f"no inputs with margins above {MARGIN}")
    arrays = {f"{kind}_{key}": value for kind, found in runs.items() for key, value in found.items()}
    description |= {"kind": "translation", "config": CONFIG, "frame_seeds": seeds, "ends": ENDS}
    description |= {"mimi": {"config": mimi_config, "seed": 1, "tensors": tensors}, "margin": MARGINS.smallest}
    print({kind: len(found["out"]) for kind, found in runs.items()})
    save(out, name, description, arrays)


def makers(out: Path) -> dict[str, Callable[[], None]]:
    """Return the makers of fixtures by name."""
    return {"hibiki_end": partial(make, out, "hibiki_end")}
