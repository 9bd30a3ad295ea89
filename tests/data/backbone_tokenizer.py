"""A small `tokenizer.json` of the kind of Llama 3 and Qwen2."""

from __future__ import annotations

from pathlib import Path

TEXTS = ["the capital of France is Paris", "it costs 42 crowns", "what is two plus two", "seven days a week"]
BEGIN = "<|begin_of_text|>"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
_WORDS += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write(path: Path, vocab: int = 300, texts: list[str] = TEXTS) -> Path:
    """Train byte pairs on texts, split as Llama 3 splits them, with one special token behind them."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts * 3, trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([BEGIN])
    made.save(str(path))
    return path
