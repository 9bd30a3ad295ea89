"""Make records of any weights for `moshijax weights verify`."""

from __future__ import annotations

import json
from pathlib import Path

import moshi.models.lm as reference_lm
import numpy as np
import torch
from moshi.conditioners import ConditionAttributes
from moshi.models import loaders

from tests.parity import weights_by_name
from tools.reference.models import MARGIN, MARGINS, save

FRAMES, STEPS = 25, 12


@torch.no_grad()
def record_codec(file: Path, config: dict | None, codebooks: int, out: Path) -> None:
    """Record codec latents, codes and their decoding, for two seconds in which every code has a clear winner."""
    model = loaders.get_mimi(file, config, num_codebooks=codebooks)
    for attempt in range(1000):
        seeds = range(1000 * attempt, 1000 * attempt + FRAMES)
        waveform = torch.from_numpy(weights_by_name.clip(seeds, model.frame_size))[None, None]
        MARGINS.start()
        codes = model.encode(waveform)
        if MARGINS.smallest > MARGIN:
            break
    else:
        print(f"no clip with margins above {MARGIN}: a code or two may differ by rounding")
    arrays = {
        "waveform": waveform[:, 0].numpy(),
        "latent": model.encode_to_latent(waveform, quantize=False).transpose(1, 2).contiguous().numpy(),
        "codes": codes.numpy().astype(np.int32),
        "decoded": model.decode(codes)[:, 0].numpy(),
    }
    save(out.parent, out.name, {"kind": "mimi", "file": file.name, "margin": MARGINS.smallest}, arrays)


@torch.no_grad()
def record_language_model(info: loaders.CheckpointInfo, out: Path) -> None:
    """Record text logits and those of every depth step, with every condition absent."""
    model = info.get_moshi("cpu", dtype=torch.float32)
    rows = model.num_codebooks
    text = weights_by_name.tokens(1, (1, 1, STEPS), model.text_card)
    codes = torch.from_numpy(np.concatenate([text, weights_by_name.tokens(2, (1, rows - 1, STEPS), model.card)], 1))
    conditions = total = None
    if model.condition_provider is not None:
        names = model.condition_provider.conditioners
        attributes = [ConditionAttributes(text=dict.fromkeys(names), tensor={})]
        conditions = model.condition_provider.prepare_and_provide(attributes)
        total = model.fuser.get_sum(conditions)
    arrays = {"codes": codes.numpy().astype(np.int32)}
    if model.dep_q:
        output = model(codes, conditions)
        arrays["logits"] = np.nan_to_num(output.logits.numpy(), nan=0.0)
        arrays["text_logits"] = np.nan_to_num(output.text_logits.numpy(), nan=0.0)
        arrays["mask"], arrays["text_mask"] = output.mask.numpy(), output.text_mask.numpy()
    else:  # the training forward of the package insists on a depth transformer
        initial = model._get_initial_token()
        delayed = torch.cat([initial, reference_lm._delay_sequence(model.delays, codes, initial)], dim=2)
        _, logits = model.forward_text(delayed[:, :, :-1], total)
        logits, mask = reference_lm._undelay_sequence(model.delays[:1], logits)
        arrays["text_logits"], arrays["text_mask"] = logits.numpy(), mask.numpy()
    save(out.parent, out.name, {"kind": "lm", "file": Path(info.moshi_weights).name}, arrays)


def record(directory: Path, out: Path) -> None:
    """Write `OUT.json` and `OUT.npz` for a published directory, and `OUT-codec` for the codec of a language model."""
    fields = json.loads((directory / "config.json").read_text())
    if "seanet" in fields:
        record_codec(directory / "model.safetensors", fields, fields["quantizer"]["n_q"], out)
        return
    mimi = directory / Path(fields.get("mimi_name", loaders.MIMI_NAME)).name
    named = fields.get("mimi_config_name")
    info = loaders.CheckpointInfo.from_hf_repo(
        "local",
        moshi_weights=directory / Path(fields.get("moshi_name", loaders.MOSHI_NAME)).name,
        mimi_weights=mimi,
        tokenizer=directory / Path(fields.get("tokenizer_name", loaders.TEXT_TOKENIZER_NAME)).name,
        config_path=directory / "config.json",
        mimi_config_path=None if named is None else directory / Path(named).name,
        lora_weights=directory / Path(fields["lora_name"]).name if fields.get("lora") else None,
    )
    record_language_model(info, out)
    if mimi.exists():
        count = max(fields["dep_q"], fields["n_q"] - fields["dep_q"])
        record_codec(mimi, info.mimi_config, count, out.with_name(f"{out.name}-codec"))
