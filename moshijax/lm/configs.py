"""Named configurations of the language model."""

from __future__ import annotations

import dataclasses

from moshijax.lm import layouts
from moshijax.lm.config import DepthConfig, LMConfig, LookupConditioner, TensorConditioner
from moshijax.lm.layouts import StreamLayout
from moshijax.nn.lora import LoRA
from moshijax.nn.rope import RopeScaling
from moshijax.nn.transformer import TransformerConfig


def _moshi_stack(**fields) -> TransformerConfig:
    defaults = dict(gating="silu", norm="rms_norm_f32", positional_embedding="rope", dtype="bfloat16")
    return TransformerConfig(**{**defaults, **fields})


def _moshi_depth(layers: int = 6, **fields) -> DepthConfig:
    stack = _moshi_stack(dim=1024, num_layers=layers, num_heads=16, hidden_dim=2816, positional_embedding="none")
    return DepthConfig(stack, **fields)


#: Moshiko and Moshika, as released (`configs/moshi_7b_202409.json` of `moshi`): 7 687 729 152 parameters.
MOSHI_7B = LMConfig(
    layout=layouts.dialogue(codebooks=8, acoustic_delay=1),
    card=2048,
    text_card=32000,
    temporal=_moshi_stack(dim=4096, num_layers=32, num_heads=32, hidden_dim=11264, context=3000),
    depth=_moshi_depth(),
)

#: The 2B development model (`configs/moshi_dev_2b.json` of `moshi`): 16 codebooks per speaker.
DEV_2B = LMConfig(
    layout=layouts.dialogue(codebooks=16, acoustic_delay=2),
    card=2048,
    text_card=48000,
    temporal=_moshi_stack(dim=2560, num_layers=24, num_heads=20, hidden_dim=7040, context=3000, max_period=1e5),
    depth=_moshi_depth(),
    conditioners=(LookupConditioner("description", bins=31, dim=16),),
)

#: PersonaPlex 7B (`nvidia/personaplex-7b-v1`): Moshi with a depth step for every row of the user too.
PERSONAPLEX_7B = LMConfig(
    layout=layouts.dialogue(codebooks=8, acoustic_delay=1, score_user=True),
    card=2048,
    text_card=32000,
    temporal=MOSHI_7B.temporal,
    depth=_moshi_depth(),
)

# The first eight depth steps have weights of their own, the others share some.
_SHARED_16 = (*range(8), *(8,) * 8)
_SHARED_32 = (*range(8), *(8,) * 8, *(9,) * 8, *(10,) * 8)


def _shared_depth(schedule: tuple[int, ...], hidden_dim: int = 2048, layers: int = 4, **fields) -> DepthConfig:
    stack = _moshi_stack(dim=1024, num_layers=layers, num_heads=16, hidden_dim=hidden_dim, positional_embedding="none")
    return DepthConfig(stack, schedule=schedule, **fields)


#: Hibiki 2B, speech translation: 16 codebooks per speaker.
HIBIKI_2B = LMConfig(
    layout=layouts.dialogue(codebooks=16, acoustic_delay=2),
    card=2048,
    text_card=48000,
    temporal=_moshi_stack(dim=2560, num_layers=24, num_heads=20, hidden_dim=7040, context=1500, max_period=1e5),
    depth=_shared_depth(_SHARED_16, low_rank=128),
    conditioners=DEV_2B.conditioners,
)

_DIM_2048 = _moshi_stack(dim=2048, num_layers=16, num_heads=16, hidden_dim=5632, context=500, max_period=1e5)

#: Hibiki 1B (`kyutai/hibiki-1b-mlx-bf16`).
HIBIKI_1B = LMConfig(
    layout=layouts.dialogue(codebooks=8, acoustic_delay=2),
    card=2048,
    text_card=48000,
    temporal=_DIM_2048,
    depth=_moshi_depth(),
    conditioners=DEV_2B.conditioners,
)

#: Hibiki-Zero 3B: half-split positions, grouped keys, a norm before every audio head.
HIBIKI_ZERO_3B = LMConfig(
    layout=layouts.dialogue(codebooks=16, acoustic_delay=2),
    card=2048,
    text_card=48000,
    temporal=_moshi_stack(
        dim=2048,
        num_layers=28,
        num_heads=16,
        kv_repeat=2,
        hidden_dim=8192,
        context=3000,
        max_period=2e4,
        positional_embedding="rope_concat",
    ),
    depth=_shared_depth(_SHARED_16, hidden_dim=4096, layers=6, output_norm="layer_norm"),
)

#: Kyutai STT 1B (`kyutai/stt-1b-en_fr`): text half a second behind the audio; its voice activity heads are 4 of 6.
STT_1B = LMConfig(
    layout=layouts.recognition(codebooks=32),
    card=2048,
    text_card=8000,
    temporal=dataclasses.replace(_DIM_2048, context=750),
)

#: Kyutai STT 2.6B (`kyutai/stt-2.6b-en`): text 2.5 s behind the audio.
STT_2_6B = LMConfig(
    layout=layouts.recognition(codebooks=32),
    card=2048,
    text_card=4000,
    temporal=_moshi_stack(dim=2048, num_layers=48, num_heads=32, hidden_dim=5632, context=375, max_period=1e5),
)

#: Kyutai TTS 1.6B (`kyutai/tts-1.6b-en_fr`): the voice by cross-attention, a look at the words to come.
TTS_1_6B = LMConfig(
    layout=layouts.single_stream(codebooks=32, acoustic_delay=2),
    card=2048,
    text_card=8000,
    temporal=dataclasses.replace(_DIM_2048, max_period=1e4, cross_attention=True),
    depth=_shared_depth(_SHARED_32, low_rank=128),
    demux_text=True,
    conditioners=(
        LookupConditioner("control", bins=1, dim=2048, values=("ok",)),
        LookupConditioner("cfg", bins=7, dim=16, values=("1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0")),
        TensorConditioner("speaker_wavs", dim=512),
    ),
    cross_positions=1.0,
)


def _checkpointed(config: LMConfig, policy: str = "full") -> LMConfig:
    """The same model, recomputing the activations of each layer in the backward pass, as the paper trained it.

    `policy` is that of the temporal transformer.
    """
    depth = config.depth and dataclasses.replace(
        config.depth, transformer=dataclasses.replace(config.depth.transformer, remat_policy="full")
    )
    temporal = dataclasses.replace(config.temporal, remat_policy=policy)
    return dataclasses.replace(config, temporal=temporal, depth=depth)


def _adapted(config: LMConfig, rank: int) -> LMConfig:
    """The same model with low-rank updates in float32 beside weights that stay as they are, in bfloat16."""
    types = config.with_dtype(config.temporal.dtype, "bfloat16")
    return dataclasses.replace(types, lora=LoRA(rank, scaling=2.0, param_dtype="float32"))


def _stages(moshi: LMConfig, codebooks: int, text_context: int) -> tuple[LMConfig, ...]:
    """The models of the stages of training (arXiv 2410.00037, 3.2 and 4.4), all of the sizes of `moshi`."""
    moshi = _checkpointed(moshi)

    def stage(layout: StreamLayout) -> LMConfig:
        return dataclasses.replace(moshi, layout=layout, depth=moshi.depth if layout.dep_q else None)

    text = stage(layouts.text_only())
    return (
        dataclasses.replace(text, temporal=dataclasses.replace(text.temporal, context=text_context)),
        stage(layouts.single_stream(codebooks, acoustic_delay=2)),
        stage(layouts.dialogue(codebooks, acoustic_delay=1, score_user=True)),
        # Its batches are small, and eight H100s have room for the products of all layers.
        _checkpointed(stage(layouts.dialogue(codebooks, acoustic_delay=1)), "dots"),
        stage(layouts.recognition(codebooks)),
        stage(layouts.synthesis(codebooks, acoustic_delay=2, two_speakers=True)),
    )


#: Helium 7B (text, context 4096); Moshi in pre-training (one stream, delay 2), from post-training on (both speakers
#: scored: 16 depth steps, delay 1) and as fine-tuned in its released form; and its siblings that hear and that speak.
HELIUM_7B, MOSHI_7B_ONE_STREAM, MOSHI_7B_TWO_STREAMS, MOSHI_7B_FINETUNED, MOSHI_7B_HEARING, MOSHI_7B_SPEAKING = _stages(
    MOSHI_7B, codebooks=8, text_context=4096
)

#: Moshi in pre-training on Llama 3.1 8B as its temporal transformer, whose ids stand behind the four of the grid.
LLAMA_8B_ONE_STREAM = _stages(
    dataclasses.replace(
        MOSHI_7B,
        text_card=4 + 128256,
        temporal=_moshi_stack(
            dim=4096,
            num_layers=32,
            num_heads=32,
            kv_repeat=4,
            hidden_dim=14336,
            context=3000,
            norm="rms_norm",
            positional_embedding="rope_concat",
            max_period=5e5,
            rope_scaling=RopeScaling(),
        ),
    ),
    codebooks=8,
    text_context=4096,
)[1]

#: The released form with updates of rank 128 beside every linear map: 388 M values to train.
MOSHI_7B_LORA = _adapted(_checkpointed(MOSHI_7B_FINETUNED), 128)

#: A model that trains in minutes on a CPU; text pieces as in the quickstart.
TINY = LMConfig(
    layout=layouts.dialogue(codebooks=4, acoustic_delay=1),
    card=256,
    text_card=256,
    temporal=TransformerConfig(
        dim=128, num_layers=4, num_heads=4, hidden_dim=336, gating="silu", norm="rms_norm_f32", context=150
    ),
    depth=DepthConfig(
        TransformerConfig(
            dim=64,
            num_layers=2,
            num_heads=4,
            hidden_dim=168,
            gating="silu",
            norm="rms_norm_f32",
            positional_embedding="none",
        )
    ),
    scan_layers=False,
)

_NANO_STACK = dict(gating="silu", norm="rms_norm_f32", num_heads=2)
_NANO = LMConfig(
    layout=layouts.dialogue(codebooks=2, acoustic_delay=1),
    card=32,
    text_card=40,
    temporal=TransformerConfig(dim=32, num_layers=2, hidden_dim=48, context=24, **_NANO_STACK),
    depth=DepthConfig(
        TransformerConfig(dim=16, num_layers=1, hidden_dim=24, positional_embedding="none", **_NANO_STACK)
    ),
)

#: The same stages, so small that a step takes milliseconds: for trying out recipes and data.
NANO_HELIUM, NANO_ONE_STREAM, NANO_TWO_STREAMS, NANO_FINETUNED, NANO_HEARING, NANO_SPEAKING = _stages(
    _NANO, codebooks=2, text_context=32
)
NANO_LLAMA_ONE_STREAM = _stages(
    dataclasses.replace(
        _NANO,
        text_card=4 + 316,
        temporal=dataclasses.replace(
            _NANO.temporal,
            kv_repeat=2,
            norm="rms_norm",
            positional_embedding="rope_concat",
            rope_scaling=RopeScaling(original_context=16),
        ),
    ),
    codebooks=2,
    text_context=32,
)[1]
NANO_LORA = _adapted(_checkpointed(NANO_FINETUNED), 4)
