"""Reference numbers of the language model."""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import moshi.models.lm as reference_lm
import numpy as np
import torch
from moshi.conditioners import ConditionAttributes, TensorCondition
from moshi.conditioners.base import dropout_all_conditions
from moshi.models import loaders
from moshi.utils import quantize

from tests.parity import weights_by_name
from tools.reference.models import MARGIN, MARGINS, load_weights, random_masks, save

UNGENERATED = -2

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
    # Cross-attention to a voice and an attribute, an attribute summed beside them; generation also with guidance.
    "lm_cross": {
        **{"dim": 32, "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "context": 7, "n_q": 4, "dep_q": 2},
        **{"card": 24, "text_card": 28, "delays": [0, 0, 1, 0, 1], "norm": "rms_norm_f32", "gating": "silu"},
        **{"positional_embedding": "rope", "cross_attention": True, "layer_scale": 0.9},
        **_DEPTH,
        "conditioners": {
            "control": {"type": "lut", "lut": {"n_bins": 6, "dim": 5, "tokenizer": "noop"}},
            "speaker": {"type": "tensor", "tensor": {"dim": 6}},
            "description": {
                "type": "lut",
                "lut": {"n_bins": 3, "dim": 8, "tokenizer": "noop", "possible_values": ["bad", "neutral", "good"]},
            },
        },
        "fuser": {
            **{"sum": ["control"], "cross": ["speaker", "description"], "prepend": []},
            **{"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 0.5},
        },
    },
    # The shape of the speech synthesis models: two text streams in one, a small text head, shared depth weights.
    "lm_demux": {
        **{"dim": 32, "num_heads": 2, "num_layers": 2, "hidden_scale": 4.125, "context": 9, "n_q": 4, "dep_q": 4},
        **{"card": 24, "text_card": 20, "text_card_out": 5, "delays": [0, 0, 2, 2, 2], "norm": "rms_norm_f32"},
        **{"gating": "silu", "positional_embedding": "rope", "demux_second_stream": True},
        **_DEPTH,
        **{"depformer_weights_per_step_schedule": [0, 1, 2, 2], "depformer_low_rank_embeddings": 6},
    },
}
LMS |= {
    # An adapter for every kind of linear map: grouped keys, shared step weights, low rank, extra heads, a condition.
    "lm_lora": {
        **{"dim": 32, "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "context": 9, "n_q": 5, "dep_q": 3},
        **{"card": 24, "text_card": 28, "delays": [0, 0, 1, 1, 0, 1], "norm": "rms_norm_f32", "gating": "silu"},
        **{"positional_embedding": "rope", "kv_repeat": 2, "extra_heads_num_heads": 2, "extra_heads_dim": 3},
        **_DEPTH,
        **{"depformer_weights_per_step_schedule": [0, 1, 1], "depformer_low_rank_embeddings": 6},
        **{"depformer_dim_feedforward": [64, 96], "depformer_kv_repeat": 1},
        "conditioners": {"description": {"type": "lut", "lut": {"n_bins": 4, "dim": 8, "tokenizer": "noop"}}},
        "fuser": {"sum": ["description"], "cross": [], "prepend": []},
        **{"lora": True, "lora_rank": 4, "lora_scaling": 0.3},
    },
    # int8 weights with a scale per row.
    "lm_int8": {
        **{"dim": 64, "num_heads": 4, "num_layers": 2, "hidden_scale": 4.125, "context": 16, "n_q": 4, "dep_q": 2},
        **{"card": 40, "text_card": 48, "delays": [0, 0, 1, 0, 1], "norm": "rms_norm_f32", "gating": "silu"},
        **{"positional_embedding": "rope", "quantize": True},
        **_DEPTH,
        **{"depformer_dim_feedforward": 132},
    },
}
#: Guidance of the runs that have it: arguments of the reference's generator.
GUIDED: dict[str, dict] = {
    "lm_conditioned": {"cfg_coef": 1.5, "cfg_is_masked_until": [4, 0, 7]},
    "lm_cross": {"cfg_coef": 2.5},
    "lm_demux": {"cfg_coef": 0.4, "cfg_is_masked_until": [6, 0, 3], "cfg_is_no_text": True},
}
#: Attributes of three rows (the training forward has the first two).
ATTRIBUTES = [
    {"description": "good", "control": "ok"},
    {"description": None, "control": "also"},
    {"description": "bad", "control": None},
]
#: The reference cannot stream the first three; of the others only the forward is stored.
NO_GENERATION = {"lm_defaults", "lm_rope_depth", "lm_unbounded", "lm_lora", "lm_int8"}


def build_lm(config: dict, seed: int) -> tuple[torch.nn.Module, dict]:
    """Return a model and the description of its weights; with an adapter or int8 weights it is read from files."""
    plain = {key: value for key, value in config.items() if key != "quantize" and not key.startswith("lora")}
    model = loaders.get_moshi_lm(None, copy.deepcopy(plain), dtype=torch.float32)
    description = {"kind": "lm", "config": config, "seed": seed, "tensors": load_weights(model, seed)}
    linear = linear_maps(model)
    if config.get("lora"):
        description["adapter"] = {}
        for name, (count, rows, columns) in linear.items():
            rank = config["lora_rank"]
            description["adapter"][f"{name}.lora_A.weight"] = [count * rank, columns]
            description["adapter"][f"{name}.lora_B.weight"] = [count * rows, rank]
        description["depth_weights"] = max(config["depformer_weights_per_step_schedule"]) + 1
        model = from_files(description)
    elif config.get("quantize"):
        in_proj = re.compile(r"\.in_proj$")
        description["int8"] = [f"{n}_weight" if in_proj.search(n) else f"{n}.weight" for n in linear]
        model = from_files(description)
    return model, description


def linear_maps(model: torch.nn.Module) -> dict[str, tuple[int, int, int]]:
    """Return, for every bias-free linear map by fused name, its number of maps, and the rows and columns of each."""
    found: dict[str, tuple[int, int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            name = re.sub(r"\.(in|out)_projs\.\d+$", r".\1_proj", name)
            found[name] = (found.get(name, (0,))[0] + 1, module.out_features, module.in_features)
    return found


def from_files(description: dict, split: bool = False, **options) -> torch.nn.Module:
    """Return the model as the package's loader reads it; `options` are of the loader, or of the config."""
    config = {**copy.deepcopy(description["config"]), **{k: v for k, v in options.items() if k == "lora"}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = weights_by_name.write_checkpoint(Path(scratch) / "model", description, split)
        adapter = folder / "lora.safetensors" if config.get("lora") else None
        options = {k: v for k, v in options.items() if k != "lora"}
        file = folder / "model.safetensors"
        return loaders.get_moshi_lm(file, config, dtype=torch.float32, lora_weights=adapter, **options)


def quantised_forward(self, x: torch.Tensor) -> torch.Tensor:
    """Compute an int8 map in float32; the package computes it in float16."""
    return torch.nn.functional.linear(x.float(), self.weight.float() * self.weight_scb[:, None] / 127)


@torch.no_grad()
def variant(model: torch.nn.Module, codes: torch.Tensor, prefix: str) -> dict[str, np.ndarray]:
    """Return the logits of the same files, computed in another way."""
    output = model(codes, conditions_of(model, 2)[0])
    return {
        f"{prefix}_{name}": np.nan_to_num(getattr(output, name).float().numpy(), nan=0.0)
        for name in ("logits", "text_logits")
    }


def variants(description: dict, model: torch.nn.Module, codes: torch.Tensor) -> dict[str, np.ndarray]:
    """`off`: without the adapter; `half`: int8 maps in float16, as the package computes them."""
    if "int8" in description:
        arrays = variant(model, codes, "half")
        quantize.QLinear.forward = quantised_forward
        return arrays
    want = variant(model, codes, "on")
    for other, limit in ((from_files(description, split=True), 0.0), (from_files(description, fuse_lora=True), 1e-4)):
        for name, array in variant(other, codes, "on").items():
            assert np.abs(array - want[name]).max() <= limit, (name, limit)
    return variant(from_files(description, lora=False), codes, "off")


def text_ids(config: dict) -> int:
    """Return ids of the text row: pieces, or pairs of them."""
    card = config["text_card"]
    return (card + 1) * (card + 1) if config.get("demux_second_stream") else card


def random_codes(seed: int, config: dict, batch: int, steps: int) -> np.ndarray:
    """Return codes [B, K, T]: ids below the cardinality, some ZERO (-1), some initial ids on the given rows."""
    text = weights_by_name.tokens(seed, (batch, 1, steps), text_ids(config))
    audio = weights_by_name.tokens(seed + 1, (batch, config["n_q"], steps), config["card"])
    codes = np.concatenate([text, audio], 1)
    chance = weights_by_name.tokens(seed + 2, codes.shape, 100)
    codes[chance < 7] = -1
    given = slice(config["dep_q"] + 1, None)
    codes[:, given][chance[:, given] > 95] = config["card"]
    return codes


def conditions_of(model, rows: int, null: bool = False):
    """Return `(condition tensors, {name: value})`, both empty for a model without conditions.

    Values are an index per row (-1 = absent), or vectors [rows, S, d] and their mask [rows, S]. `null`: the tensors
    have as many rows again with every condition absent.
    """
    if model.condition_provider is None:
        return None, {}
    provider = model.condition_provider
    attributes = [
        ConditionAttributes(
            text={name: row[name] for name in provider.text_conditions},
            tensor={name: voice(index, provider.conditioners[name].dim) for name in provider.tensor_conditions},
        )
        for index, row in enumerate(ATTRIBUTES[:rows])
    ]
    prepared = provider.prepare(attributes)
    values = {}
    for name, value in prepared.items():
        if name in provider.tensor_conditions:
            values[name] = (value.tensor.numpy(), value.mask.numpy())
        else:
            tokens = value.tokens[:, 0].tolist()
            values[name] = [-1 if row[name] is None else token for row, token in zip(ATTRIBUTES, tokens, strict=False)]
    if null:
        attributes += dropout_all_conditions(attributes)
    return provider.prepare_and_provide(attributes), values


def voice(row: int, dim: int) -> TensorCondition:
    """Return the vectors of row `row`: 4, 2 and 3 positions, one of the last absent."""
    length = (4, 2, 3)[row]
    vectors = weights_by_name.uniform(np.random.RandomState([row, dim]), (1, length, dim)) * np.float32(2.0)
    mask = np.ones((1, length), bool)
    mask[0, 1] = row != 2
    return TensorCondition(torch.from_numpy(vectors), torch.from_numpy(mask))


@torch.no_grad()
def make_lm(out: Path, name: str) -> None:
    config = LMS[name]
    seed = 100 + list(LMS).index(name)
    model, description = build_lm(config, seed)
    steps = 40
    codes = torch.from_numpy(random_codes(seed, config, 2, steps))
    arrays = {"codes": codes.numpy().astype(np.int32)}
    if "adapter" in description or "int8" in description:
        arrays |= variants(description, model, codes)
    initial = model._get_initial_token().expand(2, -1, -1)
    delayed = reference_lm._delay_sequence(model.delays, codes, initial)
    delayed = torch.cat([initial, delayed], dim=2)
    conditions, indices = conditions_of(model, 2)
    total = None if conditions is None else model.fuser.get_sum(conditions)
    source = None if conditions is None else model.fuser.get_cross(conditions)
    hidden, text_logits = model.forward_text(delayed[:, :, :-1], total, source)
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
    parameters = sum(int(np.prod(s)) for s in description["tensors"].values())
    print(f"  {parameters} parameters, {spread}")
    for key, values in (("conditions", indices), ("generation_conditions", conditions_of(model, 3)[1])):
        for part, value in values.items():
            if isinstance(value, tuple):
                arrays[f"{key}_{part}"], arrays[f"{key}_{part}_mask"] = value
            else:
                description.setdefault(key, {})[part] = value
    if name not in NO_GENERATION:
        runs = {}
        for kind in ("sync", "masked", "forced", *(["guided"] if name in GUIDED else [])):
            runs[kind], generated = generate(model, config, seed, kind, GUIDED.get(name, {}))
            arrays.update({f"{kind}_{key}": value for key, value in generated.items()})
        description["generation"] = runs
        description["margin"] = min(run["margin"] for run in runs.values())
    save(out, name, description, arrays)


@torch.no_grad()
def generate(model, config: dict, seed: int, kind: str, guidance: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """Make a greedy run; try inputs until every argmax of an executing row has a margin above MARGIN."""
    calls, rows = 3 * config["context"] + 8, 3
    given_rows = config["n_q"] - config["dep_q"]
    for attempt in range(500):
        base = 10_000 * (seed + 1) + 10 * attempt
        given = weights_by_name.tokens(base, (calls, rows, given_rows), config["card"])
        active, reset = np.ones((calls, rows), bool), np.zeros((calls, rows), bool)
        force = np.full((calls, rows, 1 + config["dep_q"]), UNGENERATED, np.int64)
        if kind in ("masked", "guided"):
            active, reset = random_masks(base, calls, rows)
        if kind == "forced":
            chosen = weights_by_name.tokens(base + 1, (calls, rows), 4) == 0
            pairs = config.get("demux_second_stream")
            pieces = text_ids(config) if pairs else config.get("text_card_out") or config["text_card"]
            words = weights_by_name.tokens(base + 2, (calls, rows), pieces)
            force[..., 0] = np.where(chosen, words, UNGENERATED)
            if config["dep_q"]:
                replaced = weights_by_name.tokens(base + 3, (calls,), 5) == 0
                audio = weights_by_name.tokens(base + 4, (calls, rows, config["dep_q"]), config["card"])
                force[..., 1:] = np.where(replaced[:, None, None], audio, UNGENERATED)
        MARGINS.start()
        options = {"support_out_of_sync": kind != "sync", "check": not config.get("demux_second_stream")}
        options |= guidance if kind == "guided" else {}
        outputs, text_logits = run_generator(model, given, active, reset, force, **options)
        if MARGINS.smallest > MARGIN:
            break
    else:
        raise SystemExit(f"no inputs with margins above {MARGIN}")
    distinct = [len(np.unique(outputs[:, :, k][outputs[:, :, k] >= 0])) for k in range(outputs.shape[2])]
    print(f"  {kind}: margin {MARGINS.smallest:.4f}, attempt {attempt}, distinct tokens per row {distinct}")
    arrays = {"given": given.astype(np.int32), "out": outputs.astype(np.int32), "text_logits": text_logits}
    if kind in ("masked", "guided"):
        arrays.update(active=active, reset=reset)
    if kind == "forced":
        arrays["force"] = force.astype(np.int32)
    return {"calls": calls, "margin": MARGINS.smallest, **(guidance if kind == "guided" else {})}, arrays


def run_generator(model, given, active, reset, force, **options) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs [calls, B, dep_q + 1] (UNGENERATED where there is none) and text logits [calls, B, V]."""
    call = {"index": 0}
    outputs, logits = [], []

    def on_text(tokens: torch.Tensor) -> None:
        forced = torch.from_numpy(force[call["index"], :, 0])
        tokens[:] = torch.where(forced == UNGENERATED, tokens, forced)

    generator = reference_lm.LMGen(
        model,
        use_sampling=False,
        condition_tensors=conditions_of(model, given.shape[1], "cfg_coef" in options)[0],
        **options,
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


def makers(out: Path) -> dict[str, Callable[[], None]]:
    """Return the makers of fixtures by name."""
    return {name: partial(make_lm, out, name) for name in LMS}
