"""Reference numbers of the codec."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from moshi.models import loaders

from tests.parity import weights_by_name
from tools.reference.models import MARGIN, MARGINS, load_weights, random_masks, save


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
    """Return the published JSON form of a Mimi config."""
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
    """Return every mutable part of the streaming state as (owner, attribute) pairs."""
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
    """Choose one seed per frame so that every codebook search has a clear winner, streaming and whole-file.

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
    """Return latents [B, T, D] and codes [B, Q, T], frame by frame. `masks`: (active [T, B], reset [T, B]) or none."""
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
    """Make a fixture of the published size: `kept` frames of latents and samples, of a clip with `length` samples."""
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


def makers(out: Path) -> dict[str, Callable[[], None]]:
    """Return the makers of fixtures by name."""
    found = {name: partial(make_small_mimi, out, name) for name in SMALL_MIMIS}
    found["mimi_full"] = partial(make_full_mimi, out, "mimi_full", 6, 32, list(range(6)), 6 * 1920 - 700)
    kept = [0, 63, 123, 124, 125, 126, 129]
    found["mimi_full_long"] = partial(make_full_mimi, out, "mimi_full_long", 130, 8, kept, 130 * 1920)
    return found
