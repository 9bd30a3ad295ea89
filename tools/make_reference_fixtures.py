"""Makes the parity fixtures of tests/parity/fixtures by running the PyTorch reference.

    python3 -m venv reference && reference/bin/pip install moshi==0.2.13
    NO_TORCH_COMPILE=1 reference/bin/python tools/make_reference_fixtures.py [--only PREFIX] [--out DIR]

Everything runs in float32 on the CPU. Weights are not stored: `tests/parity/weights_by_name.py` fills them from a seed
and the published tensor name, here and in the tests alike. Every argmin (codebook search) and argmax (greedy token) is
watched: an input is kept only when the best candidate beats the second by more than MARGIN (in Euclidean distance, in
logits), so that equal codes and tokens are a fair demand on any machine. tests/parity/README.md describes the files.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("NO_TORCH_COMPILE", "1")
os.environ.setdefault("NO_CUDA_GRAPH", "1")

import moshi
import moshi.models.lm as reference_lm
import numpy as np
import torch
from moshi.conditioners import ConditionAttributes
from moshi.models import loaders
from moshi.quantization import core_vq

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "parity"))

import weights_by_name  # noqa: E402

MARGIN = 1e-3
UNGENERATED = -2


# --- watching argmin and argmax -------------------------------------------------------------------------------------


class Margins:
    """Smallest gap between the best and the second best candidate seen since `start`."""

    def __init__(self) -> None:
        self.smallest = float("inf")
        self.rows: torch.Tensor | None = None

    def start(self) -> None:
        self.smallest = float("inf")

    def add(self, gaps: torch.Tensor) -> None:
        """`gaps` [B, ...]; rows outside `self.rows` (frozen ones) do not count."""
        if self.rows is not None:
            gaps = gaps[self.rows]
        if gaps.numel():
            self.smallest = min(self.smallest, float(gaps.min()))


MARGINS = Margins()


def _watch_codebooks() -> None:
    original = core_vq.EuclideanCodebook._quantize

    def quantize(self, x):
        distances = torch.cdist(x[None].double(), self.embedding[None].double(), p=2)[0]
        best = distances.topk(2, dim=-1, largest=False).values
        MARGINS.add(best[:, 1] - best[:, 0])
        return original(self, x)

    core_vq.EuclideanCodebook._quantize = quantize


def _watch_sampling() -> None:
    original = reference_lm.sample_token

    def sample(logits, *args, **kwargs):
        best = logits.topk(2, dim=-1).values
        MARGINS.add((best[..., 0] - best[..., 1]).flatten(1))
        return original(logits, *args, **kwargs)

    reference_lm.sample_token = sample


# --- models ---------------------------------------------------------------------------------------------------------


def published_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """`{published name: shape}`: the attention projections of the package are split per step, the files fuse them."""
    shapes: dict[str, list[int]] = {}
    for name, value in model.state_dict().items():
        shape = list(value.shape)
        for split, fused in ((".in_projs.", ".in_proj_weight"), (".out_projs.", ".out_proj.weight")):
            if split in name:
                name = name.split(split)[0] + fused
                shape = [shapes.get(name, [0])[0] + shape[0], *shape[1:]]
        shapes[name] = shape
    return shapes


def load_weights(model: torch.nn.Module, seed: int) -> dict[str, list[int]]:
    shapes = published_shapes(model)
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights_by_name.fill(shapes, seed).items()}, strict=True)
    for module in model.modules():  # the table is cached: forget the one made before loading
        if isinstance(module, core_vq.EuclideanCodebook):
            module.register_buffer("_embedding", None, persistent=False)
    model.eval()
    return shapes


def save(out: Path, name: str, description: dict, arrays: dict[str, np.ndarray]) -> None:
    reference = {"moshi": moshi.__version__, "torch": torch.__version__.split("+")[0], "dtype": "float32"}
    description = {**description, "reference": reference}
    (out / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")
    np.savez_compressed(out / f"{name}.npz", **arrays)
    size = (out / f"{name}.npz").stat().st_size
    print(f"{name}: {size / 1e3:.0f} kB, margin {description.get('margin')}", flush=True)


# --- Mimi -----------------------------------------------------------------------------------------------------------


def mimi_config(
    n_filters: int = 4,
    dimension: int = 32,
    bins: int = 64,
    n_q: int = 8,
    code_dim: int = 16,
    sample_rate: int = 24000,
    frame_rate: float = 12.5,
    seanet: dict | None = None,
    transformer: dict | None = None,
) -> dict:
    """The published JSON form of a Mimi config."""
    base = loaders._mimi_config
    return {
        "sample_rate": sample_rate,
        "channels": 1,
        "frame_rate": frame_rate,
        "seanet": {**base["seanet"], "n_filters": n_filters, "dimension": dimension, **(seanet or {})},
        "quantizer": {
            "dimension": code_dim,
            "n_q": n_q,
            "bins": bins,
            "input_dimension": dimension,
            "output_dimension": dimension,
        },
        "transformer": {
            **base["transformer"],
            "d_model": dimension,
            "num_heads": 2,
            "num_layers": 2,
            "layer_scale": 1.0,
            "context": 20,
            "dim_feedforward": 2 * dimension,
            "input_dimension": dimension,
            "output_dimensions": [dimension],
            **(transformer or {}),
        },
    }


SMALL_MIMIS = {
    # name: (config, frames, weight seed)
    "mimi_small": (mimi_config(), 15, 1),
    # other hop, other frame-rate stride, two residual layers (dilation acts), wider kernels, gated RMS transformer
    "mimi_variant": (
        mimi_config(
            n_filters=6,
            dimension=24,
            bins=48,
            n_q=4,
            code_dim=12,
            sample_rate=8000,
            frame_rate=25,
            seanet={
                "ratios": [5, 4, 4],
                "n_residual_layers": 2,
                "kernel_size": 5,
                "last_kernel_size": 5,
                "compress": 1,
            },
            transformer={"num_heads": 4, "num_layers": 1, "max_period": 500, "context": 11, "dim_feedforward": 60},
        ),
        20,
        2,
    ),
}


def build_mimi(config: dict, seed: int, num_codebooks: int) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    model = loaders.get_mimi(None, config, num_codebooks=num_codebooks)
    return model, load_weights(model, seed)


def _streaming_tensors(model) -> list:
    """Every mutable thing in the streaming state, as (owner, attribute) pairs."""
    found = []
    for state in model.get_streaming_state().values():
        for owner in (state, getattr(state, "kv_cache", None)):
            if owner is not None:
                found += [(owner, k) for k, v in vars(owner).items() if isinstance(v, torch.Tensor | int)]
    return found


def _snapshot(model) -> list:
    return [
        (owner, key, value.clone() if isinstance(value := getattr(owner, key), torch.Tensor) else value)
        for owner, key in _streaming_tensors(model)
    ]


def _restore(snapshot: list) -> None:
    for owner, key, value in snapshot:
        if isinstance(value, torch.Tensor):
            getattr(owner, key).copy_(value)
        else:
            setattr(owner, key, value)


@torch.no_grad()
def pick_frames(model, frames: int, first_seed: int, whole_from: int) -> tuple[list[int], float]:
    """Chooses one seed per frame so that every codebook search has a clear winner, streaming and whole-file.

    From frame `whole_from` on (where the two may differ) the whole-file encoding of the prefix is checked as well.
    """
    size, seeds, smallest, seed = model.frame_size, [], float("inf"), first_seed
    with model.streaming(1):
        while len(seeds) < frames:
            before = _snapshot(model)
            MARGINS.start()
            model.encode(torch.from_numpy(weights_by_name.frame(seed, size))[None, None])
            if MARGINS.smallest > MARGIN and len(seeds) >= whole_from:
                with not_streaming(model):
                    model.encode(torch.from_numpy(weights_by_name.clip([*seeds, seed], size))[None, None])
            if MARGINS.smallest > MARGIN:
                smallest = min(smallest, MARGINS.smallest)
                seeds.append(seed)
                if len(seeds) % 20 == 0:
                    print(f"  {len(seeds)} of {frames} frames chosen from {seed - first_seed + 1}", flush=True)
            else:
                _restore(before)
            seed += 1
    return seeds, smallest


@contextlib.contextmanager
def not_streaming(model):
    states = []

    def take(_, module):
        states.append((module, module._streaming_state))
        module._streaming_state = None

    model._apply_named_streaming(take)
    yield
    for module, state in states:
        module._streaming_state = state


def to_numpy_latent(latent: torch.Tensor) -> np.ndarray:
    return latent.transpose(1, 2).contiguous().numpy()


@torch.no_grad()
def stream_encode(model, waveform: torch.Tensor, masks=None) -> tuple[np.ndarray, np.ndarray]:
    """Frame by frame: latents [B, T, D] and codes [B, Q, T]. `masks`: (active [T, B], reset [T, B]) or none."""
    size = model.frame_size
    latents, codes = [], []
    with model.streaming(waveform.shape[0]):
        for t in range(waveform.shape[-1] // size):
            chunk = waveform[..., t * size : (t + 1) * size]
            if masks is not None:
                active, reset = masks
                if reset[t].any():
                    model.reset_streaming(torch.from_numpy(reset[t]))
                model.set_exec_mask(torch.from_numpy(active[t]))
                MARGINS.rows = None
            latent = model.encode_to_latent(chunk, quantize=False)
            latents.append(latent)
            if masks is not None:
                MARGINS.rows = torch.from_numpy(active[t])
            codes.append(model.quantizer.encode(latent))
            MARGINS.rows = None
    return to_numpy_latent(torch.cat(latents, -1)), torch.cat(codes, -1).numpy().astype(np.int32)


@torch.no_grad()
def stream_decode(model, codes: torch.Tensor, masks=None) -> np.ndarray:
    out = []
    with model.streaming(codes.shape[0]):
        for t in range(codes.shape[-1]):
            if masks is not None:
                active, reset = masks
                if reset[t].any():
                    model.reset_streaming(torch.from_numpy(reset[t]))
                model.set_exec_mask(torch.from_numpy(active[t]))
            out.append(model.decode(codes[..., t : t + 1]))
    return torch.cat(out, -1)[:, 0].numpy()


def random_masks(seed: int, steps: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Active and reset masks [T, B]. Row 0 always runs and is never reset, row 1 freezes, the others do both."""
    draws = weights_by_name.uniform(np.random.RandomState([seed, steps, rows]), (2, steps, rows))
    active, reset = draws[0] > -0.4, draws[1] > 0.8
    active[:, 0] = True
    reset[:, :2] = False
    reset[0] = False
    return active, reset


@torch.no_grad()
def make_small_mimi(out: Path, name: str) -> None:
    config, frames, seed = SMALL_MIMIS[name]
    model, shapes = build_mimi(config, seed, config["quantizer"]["n_q"])
    size = model.frame_size
    stride = int(model.encoder_frame_rate / model.frame_rate)
    window = config["transformer"]["context"] // stride
    rows, smallest = [], float("inf")
    for row in range(2):
        seeds, margin = pick_frames(model, frames, 1000 * (row + 1), window - 1)
        rows.append(seeds)
        smallest = min(smallest, margin)
    waveform = torch.from_numpy(np.stack([weights_by_name.clip(seeds, size) for seeds in rows]))[:, None]
    MARGINS.start()
    codes = model.encode(waveform)
    arrays = {
        "latent": to_numpy_latent(model.encode_to_latent(waveform, quantize=False)),
        "codes": codes.numpy().astype(np.int32),
        "decoded": model.decode(codes)[:, 0].numpy(),
    }
    arrays["stream_latent"], arrays["stream_codes"] = stream_encode(model, waveform)
    arrays["stream_decoded"] = stream_decode(model, codes)
    difference = np.abs(arrays["latent"] - arrays["stream_latent"]).max((0, 2))
    print(f"  whole-file against streaming, largest latent difference per frame: {np.round(difference, 6)}")
    print(f"  scales: latent {arrays['latent'].std():.3f} decoded {arrays['decoded'].std():.3f}")
    print(f"  distinct codes per level: {[len(np.unique(arrays['codes'][:, q])) for q in range(codes.shape[1])]}")
    # Fewer codebooks and odd lengths: the reference pads on the right with zeros.
    arrays["decoded_semantic_only"] = model.decode(codes[:, :1])[:, 0].numpy()
    lengths = [1, size - 1, size, size + 1, 3 * size + size // 3]
    odd = {}
    for index, length in enumerate(lengths):
        short = waveform[:1, :, :length]
        odd[f"codes_length_{index}"] = model.encode(short).numpy().astype(np.int32)
        odd[f"latent_length_{index}"] = to_numpy_latent(model.encode_to_latent(short, quantize=False))
    odd_margin = MARGINS.smallest
    # Rows that are frozen and reset, streaming: 3 rows, the frames of row r are those of row r mod 2.
    for attempt in range(200):
        masks = random_masks(attempt, frames, 3)
        MARGINS.start()
        batch = waveform[[0, 1, 0]]
        masked_latent, masked_codes = stream_encode(model, batch, masks)
        if MARGINS.smallest > MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no masks with margins above {MARGIN}")
    arrays.update(odd, masked_latent=masked_latent, masked_codes=masked_codes, active=masks[0], reset=masks[1])
    arrays["masked_decoded"] = stream_decode(model, codes[[0, 1, 0]], masks)
    smallest = min(smallest, MARGINS.smallest)
    description = {
        "kind": "mimi",
        "config": config,
        "seed": seed,
        "tensors": shapes,
        "frame_size": size,
        "frame_seeds": rows,
        "lengths": lengths,
        "margin": min(smallest, odd_margin),
    }
    save(out, name, description, arrays)


@torch.no_grad()
def make_full_mimi(out: Path, name: str, frames: int, num_codebooks: int, kept: list[int], length: int) -> None:
    """Published sizes. `kept`: frames whose latents and samples are stored; `length`: samples of the clip in use."""
    seed = 3
    started = time.time()
    model, shapes = build_mimi(loaders._mimi_config, seed, num_codebooks)
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    print(f"  {values} values in {len(shapes)} tensors, {time.time() - started:.1f} s")
    size = model.frame_size
    seeds, margin = pick_frames(model, frames, 5000, 124)
    waveform = torch.from_numpy(weights_by_name.clip(seeds, size))[None, None]
    waveform[..., length:] = 0.0
    MARGINS.start()
    codes = model.encode(waveform[..., :length])
    latent = to_numpy_latent(model.encode_to_latent(waveform[..., :length], quantize=False))
    decoded = model.decode(codes)[:, 0].numpy()
    stream_latent, stream_codes = stream_encode(model, waveform)
    stream_decoded = stream_decode(model, codes)
    margin = min(margin, MARGINS.smallest)
    if margin <= MARGIN:
        raise SystemExit(f"{name}: margin {margin} at a length of {length}: choose another length")
    difference = np.abs(latent - stream_latent).max((0, 2))
    print(f"  whole-file against streaming, largest latent difference: {difference[[0, -1]]}")
    print(f"  scales: latent {latent.std():.3f} decoded {decoded.std():.3f}")
    print(f"  distinct codes per level: {[len(np.unique(codes[:, q])) for q in range(codes.shape[1])]}")
    pick = np.asarray(kept)
    by_frame = lambda x: x.reshape(x.shape[0], frames, size)[:, pick]  # noqa: E731
    arrays = {
        "codes": codes.numpy().astype(np.int32),
        "stream_codes": stream_codes,
        "kept_frames": pick,
        "latent": latent[:, pick],
        "stream_latent": stream_latent[:, pick],
        "decoded": by_frame(decoded),
        "stream_decoded": by_frame(stream_decoded),
    }
    if num_codebooks > 8:
        arrays["decoded_8"] = by_frame(model.decode(codes[:, :8])[:, 0].numpy())
    description = {
        "kind": "mimi",
        "config": loaders._mimi_config,
        "seed": seed,
        "tensors": shapes,
        "frame_size": size,
        "frame_seeds": [seeds],
        "length": length,
        "margin": margin,
    }
    save(out, name, description, arrays)


# --- language model -------------------------------------------------------------------------------------------------

_DEPTH = {
    "depformer_dim": 32,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_multi_linear": True,
    "depformer_weights_per_step": True,
    "depformer_pos_emb": "none",
    "depformer_gating": "silu",
}

LMS: dict[str, dict] = {
    # The shape of Moshi 7B, small.
    "lm_moshi": {
        **{"dim": 64, "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "context": 16, "n_q": 4, "dep_q": 2},
        **{"card": 40, "text_card": 48, "delays": [0, 0, 1, 0, 1], "norm": "rms_norm_f32", "gating": "silu"},
        **{"positional_embedding": "rope", "max_period": 10000, "causal": True, "layer_scale": None},
        **_DEPTH,
        **{"depformer_dim_feedforward": 132, "depformer_causal": True, "depformer_context": 2},
        **{"depformer_max_period": 10000, "depformer_layer_scale": None, "existing_text_padding_id": 3},
    },
    # Hibiki-Zero and TTS traits: grouped keys, half-split rope, shared step weights, low rank, a norm per codebook.
    "lm_schedule": {
        **{"dim": 48, "num_heads": 4, "num_layers": 3, "hidden_scale": 6, "context": 12, "n_q": 8, "dep_q": 4},
        **{"card": 32, "text_card": 40, "delays": [0, 0, 2, 2, 2, 0, 2, 2, 2], "norm": "rms_norm_f32"},
        **{"gating": "silu", "positional_embedding": "rope_concat", "max_period": 20000, "kv_repeat": 2},
        **_DEPTH,
        **{"depformer_weights_per_step_schedule": [0, 1, 2, 2], "depformer_low_rank_embeddings": 8},
        **{"depformer_dim_feedforward": [64, 96, 128], "depformer_norm": "layer_norm", "depformer_kv_repeat": 1},
    },
    # Library defaults wherever a field may be left out: LayerNorm, sin positions, plain GELU, one set of depth weights.
    "lm_defaults": {
        **{"dim": 32, "num_heads": 2, "num_layers": 2, "n_q": 3, "dep_q": 3, "card": 24, "text_card": 30},
        **{"delays": [0, 1, 2, 4], "context": 10, "depformer_dim": 24, "depformer_num_heads": 2},
    },
    # Biases, normed embeddings, extra heads, a text head of its own width, layer scale, scaled positions.
    "lm_heads": {
        **{"dim": 48, "num_heads": 4, "num_layers": 2, "hidden_scale": 3, "context": 14, "n_q": 4, "dep_q": 3},
        **{"card": 28, "text_card": 36, "text_card_out": 5, "delays": [0, 0, 1, 1, 0], "norm": "layer_norm_f32"},
        **{"norm_emb": True, "bias_proj": True, "gating": "gelu", "positional_embedding": "sin_rope"},
        **{"positional_scale": 0.5, "max_period": 300, "layer_scale": 0.8},
        **_DEPTH,
        **{"depformer_pos_emb": "sin", "depformer_positional_scale": 2.0, "depformer_max_period": 20},
        **{"depformer_gating": "mish", "depformer_layer_scale": 0.7, "depformer_num_layers": 1},
        **{"extra_heads_num_heads": 4, "extra_heads_dim": 6, "depformer_low_rank_embeddings": 6},
    },
    # Recognition: no depth transformer at all.
    "lm_recognition": {
        **{"dim": 40, "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "context": 9, "n_q": 6, "dep_q": 0},
        **{"card": 32, "text_card": 50, "delays": [0] * 7, "norm": "rms_norm_f32", "gating": "silu"},
        **{"positional_embedding": "rope", "max_period": 100000},
        **{"extra_heads_num_heads": 2, "extra_heads_dim": 3},
    },
    # The 4x hidden rule, no positions, rms_norm, everything the depth transformer can inherit inherited.
    "lm_inherit": {
        **{"dim": 32, "num_heads": 4, "num_layers": 2, "hidden_scale": 4, "context": 11, "n_q": 5, "dep_q": 3},
        **{"card": 30, "text_card": 44, "delays": [0, 1, 0, 2, 0, 1], "norm": "rms_norm", "gating": "relu"},
        **{"positional_embedding": "none", "layer_scale": 0.5, "kv_repeat": 2, "existing_text_padding_id": 5},
        **{"existing_text_end_padding_id": 7, "depformer_dim": 24, "depformer_num_heads": 2},
        **{"depformer_multi_linear": True, "depformer_weights_per_step": True, "depformer_pos_emb": "none"},
    },
    # Depth transformer with rope and its own period, plain MLP, one set of weights but one input projection per step.
    "lm_rope_depth": {
        **{"dim": 32, "num_heads": 2, "num_layers": 2, "hidden_scale": 4.125, "context": 16, "n_q": 6, "dep_q": 4},
        **{"card": 26, "text_card": 33, "delays": [0, 0, 1, 1, 1, 0, 1], "norm": "rms_norm_f32", "gating": "elu"},
        **{"positional_embedding": "rope", "kv_repeat": 2, "layer_scale": 0.9},
        **{"depformer_dim": 32, "depformer_num_heads": 4, "depformer_num_layers": 3, "depformer_pos_emb": "rope"},
        **{"depformer_max_period": 50, "depformer_gating": "none", "depformer_kv_repeat": 4},
        **{"depformer_multi_linear": True, "depformer_layer_scale": None, "depformer_norm": "layer_norm"},
        **{"depformer_dim_feedforward": 40, "norm_emb": True},
    },
    # Text later than audio (the synthesis and masked-delay case), one input projection for scheduled steps.
    "lm_text_delay": {
        **{"dim": 32, "num_heads": 2, "num_layers": 2, "hidden_scale": 4.125, "context": 8, "n_q": 3, "dep_q": 3},
        **{"card": 30, "text_card": 36, "delays": [3, 0, 1, 1], "norm": "layer_norm", "gating": "sigmoid"},
        **{"positional_embedding": "sin", "max_period": 1000},
        **_DEPTH,
        **{"depformer_multi_linear": False, "depformer_weights_per_step_schedule": [0, 0, 1]},
        **{"depformer_gating": "tanh", "depformer_pos_emb": "sin_rope", "depformer_dim_feedforward": None},
        **{"depformer_norm": "layer_norm_f32", "bias_proj": True, "norm_emb": False},
    },
    # The remaining activations; no window at all (training forward only: the reference cannot stream it).
    "lm_unbounded": {
        **{"dim": 32, "num_heads": 4, "num_layers": 1, "hidden_scale": 4.125, "context": None, "n_q": 2, "dep_q": 2},
        **{"card": 22, "text_card": 26, "delays": [0, 0, 1], "norm": "layer_norm", "gating": "softsign"},
        **{"positional_embedding": "rope"},
        **_DEPTH,
        **{"depformer_gating": "leaky_relu", "depformer_norm": "layer_norm_f32", "depformer_pos_emb": "rope_concat"},
    },
    "lm_identity": {
        **{"dim": 32, "num_heads": 4, "num_layers": 2, "hidden_scale": 2, "context": 7, "n_q": 4, "dep_q": 4},
        **{"card": 24, "text_card": 28, "delays": [0, 0, 1, 2, 3], "norm": "layer_norm_f32", "gating": "identity"},
        **{"positional_embedding": "rope"},
        **_DEPTH,
        **{"depformer_gating": "silu", "depformer_low_rank_embeddings": 4, "norm_emb": True},
    },
    # Two summed attributes per row, one by name and one by a hashed value; a row may lack either.
    "lm_conditioned": {
        **{"dim": 32, "num_heads": 2, "num_layers": 1, "hidden_scale": 4.125, "context": 7, "n_q": 4, "dep_q": 2},
        **{"card": 24, "text_card": 28, "delays": [0, 0, 1, 0, 1], "norm": "rms_norm_f32", "gating": "silu"},
        **{"positional_embedding": "rope"},
        **_DEPTH,
        "conditioners": {
            "control": {"type": "lut", "lut": {"n_bins": 6, "dim": 5, "tokenizer": "noop"}},
            "description": {
                "type": "lut",
                "lut": {"n_bins": 4, "dim": 8, "tokenizer": "noop", "possible_values": ["bad", "neutral", "good"]},
            },
        },
        "fuser": {"sum": ["description", "control"], "cross": [], "prepend": []},
    },
}
#: Attributes of three rows (the training forward has the first two).
ATTRIBUTES = [
    {"description": "good", "control": "ok"},
    {"description": None, "control": "also"},
    {"description": "bad", "control": None},
]
NO_GENERATION = {"lm_defaults", "lm_rope_depth", "lm_unbounded"}  # the reference cannot stream these


def build_lm(config: dict, seed: int) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    config = copy.deepcopy(config)
    model = loaders.get_moshi_lm(None, config, dtype=torch.float32)
    return model, load_weights(model, seed)


def random_codes(seed: int, config: dict, batch: int, steps: int) -> np.ndarray:
    """Codes [B, K, T]: ids below the cardinality, some ZERO (-1), some initial ids on the given rows."""
    text = weights_by_name.tokens(seed, (batch, 1, steps), config["text_card"])
    audio = weights_by_name.tokens(seed + 1, (batch, config["n_q"], steps), config["card"])
    codes = np.concatenate([text, audio], 1)
    chance = weights_by_name.tokens(seed + 2, codes.shape, 100)
    codes[chance < 7] = -1
    given = slice(config["dep_q"] + 1, None)
    codes[:, given][chance[:, given] > 95] = config["card"]
    return codes


def conditions_of(model, rows: int):
    """`(condition tensors, {name: value index per row, -1 = absent})`, or none of both."""
    if model.condition_provider is None:
        return None, {}
    attributes = [ConditionAttributes(text=row, tensor={}) for row in ATTRIBUTES[:rows]]
    indices = {}
    for name, conditioner in model.condition_provider.conditioners.items():
        values = conditioner.tokenizer([row[name] for row in ATTRIBUTES[:rows]]).tokens[:, 0].tolist()
        indices[name] = [-1 if row[name] is None else value for row, value in zip(ATTRIBUTES, values, strict=False)]
    return model.condition_provider.prepare_and_provide(attributes), indices


@torch.no_grad()
def make_lm(out: Path, name: str) -> None:
    config = LMS[name]
    seed = 100 + list(LMS).index(name)
    model, shapes = build_lm(config, seed)
    steps = 40
    codes = torch.from_numpy(random_codes(seed, config, 2, steps))
    arrays = {"codes": codes.numpy().astype(np.int32)}
    initial = model._get_initial_token().expand(2, -1, -1)
    delayed = reference_lm._delay_sequence(model.delays, codes, initial)
    delayed = torch.cat([initial, delayed], dim=2)
    conditions, indices = conditions_of(model, 2)
    total = None if conditions is None else model.fuser.get_sum(conditions)
    hidden, text_logits = model.forward_text(delayed[:, :, :-1], total)
    arrays["temporal_out"] = hidden.numpy()
    if config["dep_q"]:
        output = model(codes, conditions)
        arrays["mask"] = output.mask.numpy()
        arrays["logits"] = np.nan_to_num(output.logits.numpy(), nan=0.0)
        arrays["text_mask"] = output.text_mask.numpy()
        arrays["text_logits"] = np.nan_to_num(output.text_logits.numpy(), nan=0.0)
        assert not np.isnan(output.logits.numpy()[arrays["mask"]]).any()
    else:  # the reference's training forward insists on a depth transformer
        arrays["text_logits"], mask = reference_lm._undelay_sequence(model.delays[:1], text_logits)
        arrays["text_mask"] = (mask & (codes[:, :1] != -1)).numpy()
        arrays["text_logits"] = arrays["text_logits"].numpy()
    if len(model.extra_heads):
        heads = [torch.softmax(head(hidden), -1) for head in model.extra_heads]
        arrays["extra_heads"] = torch.stack(heads, 1).numpy()
    spread = f"text logits {arrays['text_logits'].std():.2f}"
    if "logits" in arrays:
        spread += f", audio logits {arrays['logits'].std():.2f}"
    parameters = sum(int(np.prod(s)) for s in shapes.values())
    print(f"  {parameters} parameters, {spread}")
    description = {"kind": "lm", "config": config, "seed": seed, "tensors": shapes}
    if indices:
        description["conditions"] = indices
        description["generation_conditions"] = conditions_of(model, 3)[1]
    if name not in NO_GENERATION:
        runs = {}
        for kind in ("sync", "masked", "forced"):
            runs[kind], generated = generate(model, config, seed, kind)
            arrays.update({f"{kind}_{key}": value for key, value in generated.items()})
        description["generation"] = runs
        description["margin"] = min(run["margin"] for run in runs.values())
    save(out, name, description, arrays)


@torch.no_grad()
def generate(model, config: dict, seed: int, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """A greedy run. Tries inputs until every argmax of an executing row has a margin above MARGIN."""
    calls, rows = 3 * config["context"] + 8, 3
    given_rows = config["n_q"] - config["dep_q"]
    for attempt in range(500):
        base = 10_000 * (seed + 1) + 10 * attempt
        given = weights_by_name.tokens(base, (calls, rows, given_rows), config["card"])
        active, reset = np.ones((calls, rows), bool), np.zeros((calls, rows), bool)
        force = np.full((calls, rows, 1 + config["dep_q"]), UNGENERATED, np.int64)
        if kind == "masked":
            active, reset = random_masks(base, calls, rows)
        if kind == "forced":
            chosen = weights_by_name.tokens(base + 1, (calls, rows), 4) == 0
            words = weights_by_name.tokens(base + 2, (calls, rows), config.get("text_card_out") or config["text_card"])
            force[..., 0] = np.where(chosen, words, UNGENERATED)
            if config["dep_q"]:
                replaced = weights_by_name.tokens(base + 3, (calls,), 5) == 0
                audio = weights_by_name.tokens(base + 4, (calls, rows, config["dep_q"]), config["card"])
                force[..., 1:] = np.where(replaced[:, None, None], audio, UNGENERATED)
        MARGINS.start()
        outputs, text_logits = run_generator(model, given, active, reset, force, synchronous=kind == "sync")
        if MARGINS.smallest > MARGIN:
            break
    else:
        raise SystemExit(f"no inputs with margins above {MARGIN}")
    distinct = [len(np.unique(outputs[:, :, k][outputs[:, :, k] >= 0])) for k in range(outputs.shape[2])]
    print(f"  {kind}: margin {MARGINS.smallest:.4f}, attempt {attempt}, distinct tokens per row {distinct}")
    arrays = {"given": given.astype(np.int32), "out": outputs.astype(np.int32), "text_logits": text_logits}
    if kind == "masked":
        arrays.update(active=active, reset=reset)
    if kind == "forced":
        arrays["force"] = force.astype(np.int32)
    return {"calls": calls, "margin": MARGINS.smallest}, arrays


def run_generator(model, given, active, reset, force, synchronous: bool) -> tuple[np.ndarray, np.ndarray]:
    """Outputs [calls, B, dep_q + 1] (UNGENERATED where nothing is returned), text logits [calls, B, V]."""
    call = {"index": 0}
    outputs, logits = [], []

    def on_text(tokens: torch.Tensor) -> None:
        forced = torch.from_numpy(force[call["index"], :, 0])
        tokens[:] = torch.where(forced == UNGENERATED, tokens, forced)

    generator = reference_lm.LMGen(
        model,
        use_sampling=False,
        support_out_of_sync=not synchronous,
        check=True,
        condition_tensors=conditions_of(model, given.shape[1])[0],
        on_text_logits_hook=lambda x: logits.append(x[:, 0, 0].clone()),
        on_text_hook=on_text,
    )
    columns = force.shape[2]
    with generator.streaming(given.shape[1]):
        for index in range(given.shape[0]):
            call["index"] = index
            if reset[index].any():
                generator.reset_streaming(torch.from_numpy(reset[index]))
            generator.set_exec_mask(torch.from_numpy(active[index]))
            MARGINS.rows = torch.from_numpy(active[index])
            replace = None
            if columns > 1 and force[index, 0, 1] != UNGENERATED:
                replace = torch.from_numpy(force[index, :, 1:])[..., None]
            out = generator.step(torch.from_numpy(given[index])[..., None], replace)
            MARGINS.rows = None
            if out is None:
                outputs.append(np.full((given.shape[1], columns), UNGENERATED))
            else:
                outputs.append(out[..., 0].numpy())
    return np.stack(outputs), torch.stack(logits).numpy()


# --- command --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="make only the fixtures whose name starts with this")
    parser.add_argument("--out", type=Path, default=weights_by_name.FIXTURES)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    _watch_codebooks()
    _watch_sampling()
    full = {
        "mimi_full": lambda name: make_full_mimi(options.out, name, 6, 32, list(range(6)), 6 * 1920 - 700),
        "mimi_full_long": lambda name: make_full_mimi(
            options.out, name, 130, 8, [0, 63, 123, 124, 125, 126, 129], 130 * 1920
        ),
    }
    makers = {name: lambda name: make_small_mimi(options.out, name) for name in SMALL_MIMIS}
    makers |= {name: lambda name: make_lm(options.out, name) for name in LMS} | full
    for name, maker in makers.items():
        if name == options.only or (options.only not in makers and name.startswith(options.only)):
            maker(name)


if __name__ == "__main__":
    main()
