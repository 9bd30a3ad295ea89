"""Examples of 5 seconds made by hand: from words and codes to the grid, its delays, the masks and the weights, cell by
cell."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import files, lm
from moshijax.data import records
from moshijax.data.grids import CHANNELS, MIXED, GridData, Window, grid_batches
from moshijax.data.interleave import TextPlacement
from moshijax.lm import delays, layouts, losses
from moshijax.lm.losses import LossConfig
from moshijax.tokens import EPAD, PAD, ZERO
from tests.lm.models import small

#: 5 s are 62.5 frames of 80 ms: the codec makes 63.
FRAMES = 63
PIECES = {"hello": [11], "goodbye": [12, 13, 14], "yes": [15], "late": [16, 17, 18], "what": [19, 20]}
TOKENIZER = SimpleNamespace(encode=PIECES.__getitem__, sha256="of words")
WORDS = [
    ["hello", 0.00, 0.40, "model"],  # frame 0: there is no frame before it for the EPAD
    ["goodbye", 1.00, 1.30, "model"],  # 1.00 x 12.5 = 12.5, so frame 12; three pieces
    ["yes", 1.10, 1.40, "model"],  # frame 13 is taken: it waits until frame 15
    ["what", 2.00, 2.50, "user"],  # frame 25
    ["late", 4.96, 5.00, "model"],  # frame 62, the last one, and three pieces
]


def window_of(maker, record, start, **drawn):
    return maker.window(record, Window(record["id"], start, words=maker.words(record), **drawn))


def codes_of(channel: int, codebook: int) -> np.ndarray:
    """1, 2, 3, ... with another start for every row."""
    return 100 * (2 * channel + codebook) + np.arange(1, FRAMES + 1)


@pytest.fixture
def prepared(tmp_path):
    def write(channels=CHANNELS):
        codes = np.stack([[codes_of(c, q) for q in range(2)] for c in range(len(channels))]).astype(np.int16)
        record = {"id": "x", "codes": codes, "words": WORDS, "duration": 5.0, "provenance": {}}
        records.write_shard(tmp_path / "shard", [record])
        codec = {"sha256": "0", "num_codebooks": 2, "sample_rate": 24_000, "frame_size": 1920}
        shards = [{"file": "shard", "records": 1, "frames": [FRAMES]}]
        index = {
            "format_version": records.FORMAT_VERSION,
            "kind": "dialogue",
            "codec": codec,
            "sha256": "0",
            "shards": shards,
        }
        files.write_json(tmp_path / records.INDEX, {**index, "channels": list(channels)})
        return str(tmp_path)

    return write


def grid_of(folder, layout, frames, **options):
    source = grid_batches(GridData((folder,), 1, frames, **options), layout, TOKENIZER, 0)
    return source.batch(0)["codes"][0]


def model_of(layout):
    return small(layout, card=400, text_card=30)


def weights_of(layout, grid, loss):
    """Weights of the text row and of the audio rows, and their denominators."""
    parts = losses.terms(model_of(layout), loss, jnp.asarray(grid[None]))
    text = np.asarray(parts["text"].weights[0])
    audio = np.asarray(parts["audio"].weights[0]) if "audio" in parts else None
    return text[0], audio, {name: float(term.denominator) for name, term in parts.items()}


def delayed(layout, grid):
    """What the model sees, without the initial column."""
    config = model_of(layout)
    return np.asarray(delays.delay(jnp.asarray(grid[None]), layout.delays, config.initial_column))[0]


def test_dialogue(prepared):
    """Two speakers, delay 1: EPAD at the first frame, a word that waits, one that is pulled back from the end."""
    layout = layouts.dialogue(2, 1, score_user=True)
    grid = grid_of(prepared(), layout, 65)  # a window of 5.2 s: two columns are past the end
    text = [EPAD, 11] + [PAD] * 9 + [EPAD, 12, 13, 14, 15] + [PAD] * 43 + [EPAD, 16, 17, 18] + [ZERO] * 2
    assert len(text) == 65 and text.index(12) == 12 and text.index(16) == 60
    end = [ZERO, ZERO]
    expected = np.array(
        [text] + [[*codes_of(0, 0), *end], [*codes_of(0, 1), *end]] + [[*codes_of(1, 0), *end], [*codes_of(1, 1), *end]]
    )
    np.testing.assert_array_equal(grid, expected)

    seen = delayed(layout, grid)
    np.testing.assert_array_equal(seen[[0, 1, 3]], expected[[0, 1, 3]])
    np.testing.assert_array_equal(seen[2], [400, *codes_of(0, 1), ZERO])
    np.testing.assert_array_equal(seen[4], [400, *codes_of(1, 1), ZERO])

    mask = np.asarray(lm.target_mask(model_of(layout), jnp.asarray(grid[None])))[0]
    np.testing.assert_array_equal(mask, np.broadcast_to(np.arange(65) < 63, (5, 65)))

    word, end = [1.0], [0.0, 0.0]
    half = [0.5]
    # paper: PAD counts a half and EPAD whole; over the frames that have a target
    by_paper = word * 2 + half * 9 + word * 5 + half * 43 + word * 4 + end
    # moshi-finetune: EPAD a half too
    by_code = half + word + half * 9 + half + word * 4 + half * 43 + half + word * 3 + end
    paper, finetune, split = LossConfig(), LossConfig("finetune"), LossConfig("split_padding")
    got, audio, divisors = weights_of(layout, grid, paper)
    np.testing.assert_array_equal(got, by_paper)
    share = np.array([100, 1, 100, 1]) / 202  # of a frame, for both speakers
    np.testing.assert_allclose(audio, share[:, None] * mask[1:], rtol=1e-6)
    assert divisors == {"text": 63.0, "audio": 63.0}

    got, audio, divisors = weights_of(layout, grid, finetune)
    np.testing.assert_array_equal(got, by_code)
    np.testing.assert_array_equal(audio, np.array([[100], [1], [100], [1]]) * mask[1:])
    assert divisors == {"text": sum(by_code), "audio": 63 * 202.0}
    assert sum(by_code) == 8 + 0.5 * 55

    got, audio, divisors = weights_of(layout, grid, split)
    np.testing.assert_array_equal(got, [float(x == 1.0) for x in by_paper])
    assert divisors == {"text": 11.0, "text_padding": 52.0, "audio": 63 * 202.0}


def test_mixed_stream_of_pre_training(prepared):
    """Everybody in one stream, delay 2: the words of all, moved 0.56 s (7 frames) earlier by the draw."""
    layout = layouts.single_stream(2, 2)
    folder = prepared(MIXED)
    source = grid_batches(GridData((folder,), 1, FRAMES), layout, TOKENIZER, 0)
    maker = source._makers[0]
    grid = window_of(maker, source._sources[0][0], 0, jitter=-0.56)
    text = (
        [EPAD, 11]  # "hello" was earlier still: at the first place there is
        + [PAD] * 2
        + [EPAD, 12, 13, 14, 15]  # frames 12 to 15, 7 earlier
        + [PAD] * 8
        + [EPAD, 19, 20]  # "what" at frame 25 - 7
        + [PAD] * 34
        + [EPAD, 16, 17, 18]  # frame 62 - 7
        + [PAD] * 5
    )
    expected = np.array([text, codes_of(0, 0), codes_of(0, 1)])
    np.testing.assert_array_equal(grid, expected)
    seen = delayed(layout, grid)
    np.testing.assert_array_equal(seen[:2], expected[:2])
    np.testing.assert_array_equal(seen[2], [400, 400, *codes_of(0, 1)[:-2]])
    mask = np.asarray(lm.target_mask(model_of(layout), jnp.asarray(grid[None])))[0]
    np.testing.assert_array_equal(mask, [[True] * 63, [True] * 63, [True] * 61 + [False] * 2])
    got, audio, divisors = weights_of(layout, grid, LossConfig())
    np.testing.assert_array_equal(got, [0.5 if token == PAD else 1.0 for token in text])
    # the last two frames have a semantic target alone, which then is the whole frame
    np.testing.assert_allclose(audio[0], [100 / 101] * 61 + [1.0] * 2, rtol=1e-6)
    np.testing.assert_allclose(audio[1], [1 / 101] * 61 + [0.0] * 2, rtol=1e-6)
    assert divisors == {"text": 63.0, "audio": 63.0}

    masked = window_of(maker, source._sources[0][0], 0, masked=True)
    np.testing.assert_array_equal(masked, [[ZERO] * 63, codes_of(0, 0), codes_of(0, 1)])
    got, _, divisors = weights_of(layout, masked, LossConfig())
    assert not got.any() and divisors == {"text": 0.0, "audio": 63.0}


def test_recognition_and_synthesis(prepared):
    """Text 2 s behind the audio, or 2 s ahead of it: 25 frames, in which the other side is absent."""
    folder, wait = prepared(), [ZERO] * 25
    heard = grid_of(folder, layouts.recognition(2), FRAMES + 25, placement=TextPlacement(text_shift=2.0))
    text = wait + [PAD] * 24 + [EPAD, 19, 20] + [PAD] * 36  # of the user, at frame 25 + 25
    np.testing.assert_array_equal(heard, [text, [*codes_of(1, 0), *wait], [*codes_of(1, 1), *wait]])
    got, audio, divisors = weights_of(layouts.recognition(2), heard, LossConfig())
    np.testing.assert_array_equal(got, [0.0] * 25 + [0.5] * 24 + [1.0] * 3 + [0.5] * 36)
    assert audio is None and divisors == {"text": 63.0}

    layout = layouts.synthesis(2, 2)
    spoken = grid_of(folder, layout, FRAMES + 25, placement=TextPlacement(text_shift=-2.0))
    text = [EPAD, 11] + [PAD] * 9 + [EPAD, 12, 13, 14, 15] + [PAD] * 45 + [EPAD, 16, 17, 18] + [PAD] * 23
    np.testing.assert_array_equal(spoken, [text, [*wait, *codes_of(0, 0)], [*wait, *codes_of(0, 1)]])
    got, audio, divisors = weights_of(layout, spoken, LossConfig())
    assert divisors == {"text": 88.0, "audio": 63.0}
    np.testing.assert_allclose(audio[0], [0.0] * 25 + [100 / 101] * 61 + [1.0] * 2, rtol=1e-6)


@pytest.mark.parametrize("shift", [2.0, -2.0])
def test_windows_are_pieces_of_the_whole_grid(prepared, shift):
    """Wherever a window begins, nothing is lost or changed at its edges, and no word is lost at all."""
    layout, rule = layouts.synthesis(2, 2), TextPlacement(text_shift=shift)
    folder = prepared()
    source = grid_batches(GridData((folder,), 1, FRAMES + 25, placement=rule), layout, TOKENIZER, 0)
    whole = source.batch(0)["codes"][0]
    cut = grid_batches(GridData((folder,), 1, 20, placement=rule), layout, TOKENIZER, 0)
    record = cut._sources[0][0]
    for start in range(FRAMES + 25 - 20 + 1):
        piece = window_of(cut._makers[0], record, start)
        np.testing.assert_array_equal(piece, whole[:, start : start + 20])
    _, counts = cut.placement_counts()
    # the last word has three pieces and begins at the last frame: text that comes late has no room after it
    placed = {"words": 4, "shifted": 1, "pulled": int(shift > 0), "tokens": 8}
    assert vars(counts) == {**placed, "lost_tokens": 0, "wordless": 0, "crowded": {}, "unknown": {}}


def test_one_stream_of_data_does_not_make_two(prepared):
    from moshijax.errors import ConfigError

    folder = prepared(MIXED)
    for layout, options in ((layouts.dialogue(2, 1), {}), (layouts.single_stream(2), {"swap_speakers": 0.5})):
        with pytest.raises(ConfigError, match="one stream with everybody in it, .*: use a layout of one stream"):
            grid_of(folder, layout, 63, **options)
