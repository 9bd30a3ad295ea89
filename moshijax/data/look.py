"""Looking at prepared data: an item's token grid as text, and the figures of a set as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.data.grids import CHANNELS, MIXED, words_of
from moshijax.data.interleave import PlacementCounts, TextPlacement, place_text
from moshijax.data.records import RecordSource
from moshijax.errors import DataError
from moshijax.tokens import EPAD, PAD

if TYPE_CHECKING:
    from moshijax.data.text import Tokenizer

_SHADES = " .:-=+*#%@"


def find(source: RecordSource, item: str) -> dict[str, Any]:
    """Find a record by its number or id.

    Raises:
      DataError: there is none; the message names the nearest ids.
    """
    if item.isdigit() and int(item) < len(source):
        return source[int(item)]
    import difflib

    ids = []
    for record in source:
        if record["id"] == item:
            return record
        ids.append(record["id"])
    near = ", ".join(difflib.get_close_matches(item, ids, 3)) or f"0 to {len(ids) - 1}"
    raise DataError(f"item {item!r} is not in {source.folder}: use its number or id, such as {near}")


def picture(record: dict[str, Any], frame_rate: float, tokenizer: Tokenizer | None, width: int = 100) -> Iterator[str]:
    """Draw a record as lines of text: words over time, the text row and codes, `width` frames per block.

    Every code is one character, from light (small id) to dark; `_` is EPAD, a dot PAD.
    """
    codes = record["codes"]
    frames = codes.shape[-1]
    words = words_of(record)
    yield f"{record['id']}: {record['duration']:.2f} s, {frames} frames, {codes.shape[1]} codebooks, {len(words)} words"
    card = max(2, int(codes.max(initial=1)) + 1)
    row, pieces = None, None
    if tokenizer is not None:
        row, counts = place_text(words, frames, frame_rate, tokenizer.encode)
        pieces = tokenizer.pieces
        yield f"text row: {counts.words} words placed, {counts.shifted} shifted, {counts.pulled} pulled forward"
    for start in range(0, frames, width):
        stop = min(start + width, frames)
        yield ""
        yield "      time " + _ruler(start, stop, frame_rate)
        for speaker in ("model", "user"):
            yield f"{speaker + ' says':>10} " + _word_line(words, speaker, start, stop, frame_rate)
        if row is not None:
            yield "  text row " + "".join(_text_mark(token, pieces) for token in row[start:stop])
        for channel, speaker in enumerate(CHANNELS if len(codes) == len(CHANNELS) else MIXED):
            for codebook in range(codes.shape[1]):
                shades = (codes[channel, codebook, start:stop].astype(np.int64) * len(_SHADES)) // card
                yield f"{speaker:>7} {codebook:2d} " + "".join(_SHADES[s] for s in shades)


def _ruler(start: int, stop: int, frame_rate: float) -> str:
    line = [" "] * (stop - start)
    second = int(np.ceil(start / frame_rate))
    while second * frame_rate < stop:
        at = int(second * frame_rate) - start
        for offset, character in enumerate(f"|{second}"):
            if 0 <= at + offset < len(line):
                line[at + offset] = character
        second += 1
    return "".join(line)


def _word_line(words: list, speaker: str, start: int, stop: int, frame_rate: float) -> str:
    line = [" "] * (stop - start)
    free = 0
    for word in words:
        at = int(word.start * frame_rate) - start
        if word.speaker != speaker or not 0 <= at < len(line):
            continue
        at = max(at, free)
        text = word.text[: max(0, len(line) - at)]
        line[at : at + len(text)] = text
        free = at + len(text) + 1
    return "".join(line)


def _text_mark(token: int, pieces: tuple[str, ...]) -> str:
    if token == PAD:
        return "."
    if token == EPAD:
        return "_"
    if token < 0:
        return " "
    letters = pieces[token].lstrip("▁")
    return letters[0] if letters and len(pieces[token]) < 6 else (letters[:1] or "▁")


def summarize(
    source: RecordSource, tokenizer: Tokenizer | None = None, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """Return figures of a data set: lengths, words, talk shares, overlap, code use and perplexity per codebook.

    Args:
      source: the records.
      tokenizer: adds how full the text row is and which words had to move.
      progress: called after every item with the number of items done.
    """
    codec = source.index["codec"]
    rate, books = codec["sample_rate"] / codec["frame_size"], codec["num_codebooks"]
    seconds, talk, overlap = [], Counter(), 0.0
    words, speakers = Counter(), Counter()
    used = [Counter() for _ in range(books)]
    placed, frames, text_frames = PlacementCounts(), 0, 0
    for record in source:
        own = words_of(record)
        seconds.append(record["duration"])
        frames += record["codes"].shape[-1]
        grid = np.zeros((2, max(1, int(np.ceil(record["duration"] * 100)))), bool)
        for word in own:
            words[word.text.lower().strip(".,?!;:")] += 1
            speakers[word.speaker] += 1
            grid[0 if word.speaker == "model" else 1, int(word.start * 100) : int(np.ceil(word.end * 100))] = True
        talk["model"] += grid[0].sum() / 100
        talk["user"] += grid[1].sum() / 100
        overlap += (grid[0] & grid[1]).sum() / 100
        for codebook in range(books):
            ids, counts = np.unique(record["codes"][:, codebook], return_counts=True)
            used[codebook].update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        if tokenizer is not None:
            row, counts = place_text(own, record["codes"].shape[-1], rate, tokenizer.encode, TextPlacement())
            placed += counts
            text_frames += int((row > PAD).sum())
        progress(len(seconds))
    total = float(sum(seconds))
    summary = {
        "items": len(source),
        "seconds": total,
        "frames": frames,
        "lengths": [float(s) for s in seconds],
        "words": dict(speakers),
        "different_words": len(words),
        "commonest_words": words.most_common(20),
        "talk_share": {name: float(talk[name] / total) if total else 0.0 for name in ("model", "user")},
        "overlap_share": float(overlap / total) if total else 0.0,
        "codebooks": [_usage(counter) for counter in used],
    }
    if tokenizer is not None:
        summary["text"] = {**vars(placed), "filled_share": text_frames / max(1, frames)}
    return summary


def _usage(counter: Counter) -> dict[str, float]:
    counts = np.array(list(counter.values()), np.float64)
    share = counts / counts.sum() if len(counts) else counts
    entropy = float(-(share * np.log(share)).sum()) if len(counts) else 0.0
    return {"used": len(counts), "perplexity": float(np.exp(entropy))}


def write_page(
    source: RecordSource,
    path: Path,
    tokenizer: Tokenizer | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Write the summary as a self-contained HTML page and return it."""
    from moshijax.report import page, plots

    summary = summarize(source, tokenizer, progress)
    report = source.index["report"]
    html = page.Page(
        f"Data set {source.folder.name}", f"{summary['items']} items, {summary['seconds'] / 60:.1f} minutes"
    )
    html.cards(
        [
            (str(summary["items"]), "items", f"{len(report['rejected'])} rejected", not report["rejected"] or None),
            (f"{summary['seconds'] / 3600:.2f} h", "audio", f"{summary['frames']} frames", None),
            (str(sum(summary["words"].values())), "words", f"{summary['different_words']} different", None),
            (f"{summary['overlap_share']:.1%}", "both speak", "share of the time", None),
        ]
    )
    html.section("Who speaks", "Share of the time in which a speaker's words last.")
    html.table(
        ("speaker", "words", "share of time"),
        [(s, summary["words"].get(s, 0), f"{summary['talk_share'][s]:.1%}") for s in ("model", "user")],
    )
    figure, axes = plots.new_figure(11, 2.6, 1, 1)
    axes[0, 0].hist(summary["lengths"], bins=40, color=plots.COLOURS[0])
    axes[0, 0].set_xlabel("seconds")
    axes[0, 0].set_ylabel("items")
    html.figure(figure, "Lengths of the recordings.")
    html.section("Codes", "A codebook whose perplexity is near the number of used codes is used evenly.")
    html.table(
        ("codebook", "codes used", "perplexity"),
        [(q, int(c["used"]), f"{c['perplexity']:.1f}") for q, c in enumerate(summary["codebooks"])],
    )
    if "text" in summary:
        text = summary["text"]
        html.section("Text row", f"{text['filled_share']:.1%} of the frames hold a text token.")
        html.table(
            ("words", "shifted later", "pulled earlier", "left out", "tokens lost"),
            [(text["words"], text["shifted"], text["pulled"], text["unknown"].total(), text["lost_tokens"])],
        )
    html.section("Words", "The most frequent ones.")
    html.table(("word", "count"), summary["commonest_words"])
    if report["flags"] or report["rejected"]:
        html.section("Findings", "What the checks flagged or refused when the set was prepared.")
        html.table(
            ("flag", "items", "for example"),
            [(name, count, report["flagged"].get(name, "")) for name, count in sorted(report["flags"].items())],
        )
        html.table(("rejected", "why"), report["rejected"][:200])
    if len(source):
        record = source[0]
        html.section("An item", "Its codes; one column is one frame.")
        rate = source.index["codec"]["sample_rate"] / source.index["codec"]["frame_size"]
        groups = {n: c.astype(np.int32) for n, c in zip(source.index.get("channels", CHANNELS), record["codes"])}
        card = int(record["codes"].max(initial=1)) + 1
        words = [(w.text, w.start, w.end) for w in words_of(record) if w.speaker == "model"]
        html.figure(plots.token_grid(groups, card, 1 / rate, words=words), f"{record['id']}: words of the model, codes")
    html.write(path)
    return summary
