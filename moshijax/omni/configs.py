"""Models that recipes train: LLaMA-Omni in its published size, and very small ones of the same parts."""

from __future__ import annotations

from dataclasses import replace

from moshijax.nn.lora import LoRA
from moshijax.omni import config
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import OmniConfig, llama_stack
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.omni.text_model import TextConfig
from moshijax.omni.whisper import WhisperConfig, whisper_stack

_TRAINED = config.LLAMA_OMNI_8B.with_dtype("bfloat16")
_TEXT, _DECODER = _TRAINED.text, _TRAINED.decoder
#: LLaMA-Omni 8B as it is trained: computed in bfloat16, layers of the text model and the decoder computed again in the
#: backward pass.
LLAMA_OMNI_8B = replace(
    _TRAINED,
    text=replace(_TEXT, stack=replace(_TEXT.stack, remat_policy="full")),
    decoder=replace(_DECODER, stack=replace(_DECODER.stack, remat_policy="full")),
)

_LORA = LoRA(64, 2.0, ("stack/*",), "float32")


def _with_lora(model: OmniConfig) -> OmniConfig:
    """Return a model whose text model has low-rank updates beside weights in bfloat16."""
    return replace(model, text=replace(model.text.with_dtype("bfloat16", "bfloat16"), lora=_LORA))


LLAMA_OMNI_8B_LORA = _with_lora(LLAMA_OMNI_8B)

#: What two cores train on the quickstart's small world: the encoder of Whisper tiny.en over clips of 3.2 s, 100 units.
QUICKSTART = OmniConfig(
    WhisperConfig(80, 160, whisper_stack(384, 4, 6)),
    AdapterConfig(384, 128),
    TextConfig(451, llama_stack(128, 3, 4, 2, 384, context=256)),
    SpeechDecoderConfig(128, 100, llama_stack(128, 2, 4, 4, 384, context=256)),
)

#: Steps of milliseconds, for tests: clips of 1.6 s, 512 ids, 20 units.
NANO = OmniConfig(
    WhisperConfig(80, 80, whisper_stack(32, 1, 2)),
    AdapterConfig(32, 32, 64),
    TextConfig(512, llama_stack(32, 2, 4, 2, 64, context=512)),
    SpeechDecoderConfig(32, 20, llama_stack(32, 1, 4, 4, 64, context=1024), upsample=5),
)
NANO_LORA = replace(NANO, text=replace(_with_lora(NANO).text, lora=replace(_LORA, rank=4)))
