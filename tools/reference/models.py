"""Shared by the makers of reference numbers: weights by name in the package's modules, and the margins of choices."""

from __future__ import annotations

import json
from pathlib import Path

import moshi
import moshi.models.lm as reference_lm
import numpy as np
import torch
from moshi.quantization import core_vq

from tests.parity import weights_by_name

MARGIN = 1e-3


class Margins:
    """Smallest gap between the best and the second best candidate seen since `start`."""

    def __init__(self) -> None:
        self.smallest = float("inf")
        self.rows: torch.Tensor | None = None

    def start(self) -> None:
        self.smallest = float("inf")

    def add(self, gaps: torch.Tensor) -> None:
        """Count gaps [B, ...]; rows outside `self.rows` (frozen ones) are ignored."""
        if self.rows is not None:
            gaps = gaps[self.rows]
        if gaps.numel():
            self.smallest = min(self.smallest, float(gaps.min()))


MARGINS = Margins()


def watch_codebooks() -> None:
    original = core_vq.EuclideanCodebook._quantize

    def quantize(self, x):
        distances = torch.cdist(x[None].double(), self.embedding[None].double(), p=2)[0]
        best = distances.topk(2, dim=-1, largest=False).values
        MARGINS.add(best[:, 1] - best[:, 0])
        return original(self, x)

    core_vq.EuclideanCodebook._quantize = quantize


def watch_sampling() -> None:
    original = reference_lm.sample_token

    def sample(logits, *args, **kwargs):
        best = logits.topk(2, dim=-1).values
        MARGINS.add((best[..., 0] - best[..., 1]).flatten(1))
        return original(logits, *args, **kwargs)

    reference_lm.sample_token = sample


def published_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Return `{published name: shape}`; the package splits attention projections per step, the files fuse them."""
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


def random_masks(seed: int, steps: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw active and reset masks [T, B]. Row 0 always runs and is never reset, row 1 freezes, the others do both."""
    draws = weights_by_name.uniform(np.random.RandomState([seed, steps, rows]), (2, steps, rows))
    active, reset = draws[0] > -0.4, draws[1] > 0.8
    active[:, 0] = True
    reset[:, :2] = False
    reset[0] = False
    return active, reset
