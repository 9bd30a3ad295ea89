"""The PyTorch side of the benchmarks: read one JSON command per line, and answer each with one JSON line of seconds.

Started by `tools.bench.codec`, `tools.bench.lm` and `tools.bench.omni` with the interpreter of a virtual environment
that holds `moshi` (and `rustymimi` or `transformers`); not a command for people.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_TORCH_COMPILE", "1")
os.environ.setdefault("NO_CUDA_GRAPH", "1")

import torch
from moshi.models import LMGen, loaders
from safetensors.torch import load_file

from tools.bench import reference_omni

loaded: dict[str, Any] = {}


def noise(*shape: int) -> torch.Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def timed(function) -> tuple[float, Any]:
    started = loaded["clock"]()
    result = function()
    return loaded["clock"]() - started, result


def setup(threads: int, clock: str) -> dict:
    torch.set_num_threads(threads)
    loaded["clock"] = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    return {"version": torch.__version__.split("+")[0]}


def published_shapes(kind: str, config: dict) -> dict:
    """Return `{name: shape}` of a model's published file, for weights by name."""
    from tools.reference.models import published_shapes as shapes

    if kind == "mimi":
        return shapes(loaders.get_mimi(None, config, num_codebooks=config["quantizer"]["n_q"]))
    return shapes(loaders.get_moshi_lm(None, config, device="meta"))


def load_mimi(directory: str, codebooks: int) -> dict:
    config = json.loads((Path(directory) / "config.json").read_text())
    loaded["mimi"] = loaders.get_mimi(Path(directory) / "model.safetensors", config, num_codebooks=codebooks)
    return {}


@torch.no_grad()
def mimi_stream(frames: int) -> dict:
    mimi = loaded["mimi"]
    size = mimi.frame_size
    pcm = noise(1, 1, (frames + 3) * size)
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    with mimi.streaming(1):
        for t in range(frames + 3):  # three to warm up
            encode, codes = timed(lambda t=t: mimi.encode(pcm[..., t * size : (t + 1) * size]))
            decode, _ = timed(lambda codes=codes: mimi.decode(codes))
            seconds["encode"].append(encode)
            seconds["decode"].append(decode)
    return {name: values[3:] for name, values in seconds.items()}


@torch.no_grad()
def mimi_file(samples: int) -> dict:
    mimi = loaded["mimi"]
    encode, codes = timed(lambda: mimi.encode(noise(1, 1, samples)))
    decode, _ = timed(lambda: mimi.decode(codes))
    return {"encode": [encode], "decode": [decode]}


@torch.no_grad()
def mimi_batch(rows: int, samples: int) -> dict:
    mimi = loaded["mimi"]
    return {"encode": [timed(lambda: mimi.encode(noise(rows, 1, samples)))[0]]}


def load_rust(directory: str, codebooks: int) -> dict:
    import rustymimi

    loaded["rust"] = rustymimi.Tokenizer(str(Path(directory) / "model.safetensors"), num_codebooks=codebooks)
    return {}


def rust_file(samples: int) -> dict:
    rust = loaded["rust"]
    pcm = noise(1, 1, samples).numpy()
    encode, codes = timed(lambda: rust.encode(pcm))
    decode, _ = timed(lambda: rust.decode(codes))
    return {"encode": [encode], "decode": [decode]}


def rust_batch(rows: int, samples: int) -> dict:
    rust, pcm = loaded["rust"], noise(rows, 1, samples).numpy()
    return {"encode": [timed(lambda: [rust.encode(row[None]) for row in pcm])[0]]}


def rust_stream(frames: int) -> dict:
    rust = loaded["rust"]
    rust.reset()
    pcm = noise(1, 1, (frames + 3) * 1920).numpy()
    seconds: dict[str, list[float]] = {"encode": [], "decode": []}
    for t in range(frames + 3):
        encode, codes = timed(lambda t=t: rust.encode_step(pcm[..., t * 1920 : (t + 1) * 1920]))
        decode, _ = timed(lambda codes=codes: rust.decode_step(codes))
        seconds["encode"].append(encode)
        seconds["decode"].append(decode)
    return {name: values[3:] for name, values in seconds.items()}


def load_lm(directory: str, train: bool) -> dict:
    config = json.loads((Path(directory) / "config.json").read_text())
    model = loaders.get_moshi_lm(None, config, dtype=torch.float32)
    model.load_state_dict(load_file(str(Path(directory) / "model.safetensors")))
    model.train(train)
    loaded["lm"] = model
    if train:
        loaded["optimizer"] = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    return {"parameters": sum(p.numel() for p in model.parameters())}


@torch.no_grad()
def lm_step(steps: int) -> dict:
    model = loaded["lm"]
    generator = LMGen(model, temp=0.8, temp_text=0.7, top_k=250, top_k_text=25)
    given = torch.zeros(1, model.n_q - model.dep_q, 1, dtype=torch.long)
    seconds = []
    with generator.streaming(1):
        for _ in range(steps + 4):
            seconds.append(timed(lambda: generator.step(given))[0])
    return {"step": seconds[4:]}


@torch.no_grad()
def call_step(config: dict | None, batch: int, steps: int, warm: int, device: str) -> dict:
    """Time calls with random bfloat16 weights, codec included: of a published config, or of Moshi 7B."""
    mimi = loaders.get_mimi(None, device=device, num_codebooks=8)
    model = loaders.get_moshi_lm(None, config, device=device, dtype=torch.bfloat16)
    model.eval()
    generator = LMGen(model, temp=0.8, temp_text=0.7, top_k=min(250, model.card), top_k_text=25)
    pcm = noise(batch, 1, mimi.frame_size).to(device)
    highest = model.card - 1

    def step() -> None:
        codes = mimi.encode(pcm).clamp(0, highest)
        out = generator.step(codes)
        if out is not None:
            mimi.decode(out[:, 1:].clamp(0, highest)).cpu()
            out.cpu()

    with mimi.streaming(batch), generator.streaming(batch):
        return {"step": [timed(step)[0] for _ in range(warm + steps)][warm:]}


def lm_train(rows: int, frames: int, steps: int) -> dict:
    model, optimizer = loaded["lm"], loaded["optimizer"]
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(model.text_card, (rows, 1, frames), generator=generator)
    audio = torch.randint(model.card, (rows, model.n_q, frames), generator=generator)
    codes = torch.cat([text, audio], 1)

    def step() -> None:
        out = model(codes)
        loss = torch.nn.functional.cross_entropy(out.text_logits[out.text_mask], codes[:, :1][out.text_mask])
        targets = codes[:, 1 : 1 + model.dep_q]
        loss = loss + torch.nn.functional.cross_entropy(out.logits[out.mask], targets[out.mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        float(loss.detach())

    return {"step": [timed(step)[0] for _ in range(steps)]}


def codec_train(rows: int, samples: int, steps: int) -> dict:
    mimi = loaded["mimi"]
    mimi.train()
    if "codec_optimizer" not in loaded:
        loaded["codec_optimizer"] = torch.optim.AdamW(mimi.parameters(), lr=1e-4, betas=(0.5, 0.9), weight_decay=0.05)
    optimizer = loaded["codec_optimizer"]
    waveform = noise(rows, 1, samples)

    def step() -> None:
        out = mimi(waveform)
        loss = (out.x - waveform).abs().mean() + 0.25 * out.penalty
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        float(loss.detach())

    return {"step": [timed(step)[0] for _ in range(steps)]}


def load_adversarial(tensors: str, windows: list[int], filters: int) -> dict:
    """Load everything else that an adversarial step needs; weights and inputs come from a file."""
    from tools.reference.adversarial import Training

    loaded["adversarial"] = Training(loaded["mimi"], load_file(tensors), windows, filters)
    return {}


def adversarial_train(steps: int) -> dict:
    """Return the seconds and the losses of every step."""
    seconds, values = zip(*(timed(loaded["adversarial"].step) for _ in range(steps)), strict=True)
    return {"step": seconds, "losses": values}


def omni_round(**sizes: int) -> dict:
    """Time the parts of LLaMA-Omni."""
    return reference_omni.omni_round(**sizes, timed=timed)


def main() -> None:
    operations = {
        function.__name__: function
        for function in (
            *(setup, published_shapes, load_mimi, mimi_stream, mimi_file, mimi_batch),
            *(load_rust, rust_file, rust_batch, rust_stream),
            *(load_lm, lm_step, call_step, lm_train, codec_train, load_adversarial, adversarial_train),
            *(reference_omni.load_omni, omni_round),
        )
    }
    for line in sys.stdin:
        command = json.loads(line)
        answer = operations[command.pop("operation")](**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
