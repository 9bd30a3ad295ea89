"""Rows and the programs under them: determinism, donation, joins, prompts, errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.runtime import CallOptions
from moshijax.runtime.play import play
from moshijax.tokens import UNGENERATED

SAMPLED = {"temperature": 0.9, "text_temperature": 0.9, "top_k": 20, "text_top_k": 20}


def waveforms(rows, *lengths, seed=0):
    random = np.random.RandomState(seed)
    return [(random.randn(int(length * rows.artifact.frame_size)) * 0.3).astype(np.float32) for length in lengths]


def same(a, b):
    np.testing.assert_array_equal(a.text_tokens, b.text_tokens)
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.pcm, b.pcm)


@pytest.mark.parametrize("name", ["step", "step_tokens", "place"])
def test_every_state_array_is_donated(loaded, name):
    size = sum(value.nbytes for value in loaded.init_state(4).values())
    assert loaded.program(name, 4).compiled.memory_analysis().alias_size_in_bytes == size


def test_state_is_constant_and_has_rows(loaded):
    state = loaded.init_state(4)
    shapes = {name: (value.shape, value.dtype) for name, value in state.items()}
    assert all(shape[0] == 4 for shape, _ in shapes.values())
    for _ in range(3):
        inputs = loaded.program("step", 4).inputs()
        inputs["active"][:] = True
        state, _ = loaded.program("step", 4)(loaded.weights, state, inputs)
    assert {name: (value.shape, value.dtype) for name, value in state.items()} == shapes


def test_call_does_not_depend_on_its_row_or_its_neighbours(rows4):
    """Bit for bit: alone, among other calls, in every slot, and started at another time."""
    wave, *others = waveforms(rows4, 30, 7, 11.5, 23, 5, 40, 13)
    [alone], _ = play(rows4, [wave], [CallOptions(5, SAMPLED)])
    assert len(np.unique(alone.codes[1])) > 3, "sampling must do something for this to mean anything"
    for position in (0, 1, 3, 6):
        waves = others[:position] + [wave] + others[position:]
        seeds = [5 if other is wave else 100 + i for i, other in enumerate(waves)]
        calls, _ = play(rows4, waves, [CallOptions(seed, SAMPLED) for seed in seeds])
        same(calls[position], alone)


def test_a_row_is_data(rows4, loaded):
    """The state of a call, moved into another slot half way, continues as if nothing had happened."""
    wave = waveforms(rows4, 16)[0].reshape(16, -1)

    def run(move_at):
        state = loaded.init_state(4)
        slot, out = 0, []
        for t in range(16):
            if t == move_at:
                state = jax.tree.map(lambda x: x[np.array([3, 1, 2, 0])], state)
                slot = 3
            inputs = loaded.program("step", 4).inputs()
            inputs["active"][slot] = True
            inputs["seed"][slot] = (1, 2)
            inputs["pcm"][slot] = wave[t]
            state, outputs = loaded.program("step", 4)(loaded.weights, state, inputs)
            out.append(jax.tree.map(lambda x, slot=slot: np.asarray(x)[slot], outputs))
        return out

    for stayed, moved in zip(run(None), run(8), strict=True):
        jax.tree.map(np.testing.assert_array_equal, stayed, moved)


def test_seeds_and_sampling_are_per_row(rows4):
    wave = waveforms(rows4, 20)[0]
    settings = [
        SAMPLED,
        SAMPLED,
        {"temperature": 0.0, "text_temperature": 0.0},
        {**SAMPLED, "top_k": 1, "text_top_k": 1},
    ]
    (a, b, greedy, top1), _ = play(rows4, [wave] * 4, [CallOptions(*chosen) for chosen in enumerate(settings)])
    assert (a.codes != b.codes).any()
    same(greedy, top1)


def test_the_first_executed_step_only_primes(rows4, loaded):
    """Its audio is ignored, nothing is returned, and the next step is the first that is heard."""
    wave = waveforms(rows4, 6)[0].reshape(6, -1)

    def run(first):
        state, out = loaded.init_state(4), []
        for t, pcm in enumerate([first, *wave]):
            inputs = loaded.program("step", 4).inputs()
            inputs["active"][2] = True
            inputs["pcm"][2] = pcm
            state, outputs = loaded.program("step", 4)(loaded.weights, state, inputs)
            assert bool(outputs["ready"][2]) == (t > 0)
            assert not np.asarray(outputs["ready"])[[0, 1, 3]].any()
            out.append(outputs)
        return out

    silent, loud = run(np.zeros_like(wave[0])), run(np.full_like(wave[0], 0.9))
    jax.tree.map(np.testing.assert_array_equal, silent, loud)
    assert (np.asarray(silent[0]["codes"][2]) == UNGENERATED).all()
    assert (np.asarray(silent[0]["pcm"]) == 0).all() and int(silent[0]["text_token"][2]) == UNGENERATED


def test_reset_equals_a_fresh_state(rows4, loaded):
    wave = waveforms(rows4, 12)[0].reshape(12, -1)

    def steps(state, frames, reset_first):
        out = []
        for t, pcm in enumerate(frames):
            inputs = loaded.program("step", 4).inputs()
            inputs["active"][1] = True
            inputs["reset"][1] = reset_first and t == 0
            inputs["pcm"][1] = pcm
            state, outputs = loaded.program("step", 4)(loaded.weights, state, inputs)
            out.append(jax.tree.map(lambda x: np.asarray(x)[1], outputs))
        return state, out

    _, fresh = steps(loaded.init_state(4), wave, False)
    used, _ = steps(loaded.init_state(4), wave[::-1], False)
    _, again = steps(used, wave, True)
    for a, b in zip(fresh, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_paused_rows_continue_where_they_were(rows4):
    wave = waveforms(rows4, 10)[0].reshape(10, -1)
    other = waveforms(rows4, 20, seed=1)[0].reshape(20, -1)

    def run(pauses):
        row, neighbour = rows4.open(CallOptions(seed=3)), rows4.open(CallOptions(seed=4))
        rows4.step(np.zeros((4, rows4.artifact.frame_size), np.float32))
        frames, sent = [], 0
        for t in range(10 + len(pauses)):
            pcm = np.zeros((4, rows4.artifact.frame_size), np.float32)
            active = np.ones(4, bool)
            active[row] = t not in pauses
            pcm[row], pcm[neighbour] = (wave[sent] if t not in pauses else 0.5), other[t]
            frame = rows4.step(pcm, active_B=active)
            assert bool(frame.ready[row]) == (t not in pauses)
            if t not in pauses:
                sent += 1
                frames.append((frame.codes[row], frame.pcm[row]))
        rows4.close(row)
        rows4.close(neighbour)
        return frames

    for a, b in zip(run(()), run((3, 4, 7)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_forced_tokens_come_back(loaded):
    state = loaded.init_state(4)
    texts, codes = [7, 9, 11, 13, 15], [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    out = []
    for text, code in zip(texts, codes, strict=True):
        inputs = loaded.program("step", 4).inputs()
        inputs["active"][:] = True
        inputs["force_text"][:] = text
        inputs["force_codes"][:] = code
        state, outputs = loaded.program("step", 4)(loaded.weights, state, inputs)
        out.append(np.asarray(outputs["codes"])[0])
    # Text and the semantic level are sampled for the column after the one that goes in, acoustic levels one later.
    assert [int(column[0]) for column in out[1:]] == texts[:4]
    assert [int(column[1]) for column in out[1:]] == [1, 4, 7, 10]
    assert [int(column[2]) for column in out[1:]] == [5, 8, 11, 14]


def test_pad_bonus_silences_the_text(rows4):
    wave = waveforms(rows4, 20)[0]
    pad = rows4.artifact.manifest["text"]["special"]["pad"]
    (free, padded), _ = play(
        rows4, [wave] * 2, [CallOptions(1, SAMPLED), CallOptions(1, {**SAMPLED, "pad_bonus": 1000.0})]
    )
    assert (padded.text_tokens == pad).all() and not (free.text_tokens == pad).all()


def test_batch_sizes_agree(rows1, rows4):
    """Greedy codes of the one program in the other; between programs only the last digits may differ."""
    wave = waveforms(rows4, 25)[0]
    greedy = {"temperature": 0.0, "text_temperature": 0.0}
    [one], _ = play(rows1, [wave], [CallOptions(0, greedy)])
    [four], _ = play(rows4, [wave], [CallOptions(0, greedy)])
    np.testing.assert_array_equal(one.codes, four.codes)
    # Relative to the peak, as untrained decoders give samples far beyond 1.
    np.testing.assert_allclose(one.pcm, four.pcm, rtol=0, atol=1e-5 * np.abs(one.pcm).max())


def test_rows_run_out_and_come_back(rows4):
    rows = [rows4.open() for _ in range(4)]
    with pytest.raises(MoshijaxError, match="all 4 rows are open"):
        rows4.open()
    rows4.close(rows[1])
    rows4.close(rows[1])
    again = rows4.open()
    assert again.slot == rows[1].slot and rows4.free_rows == 0
    rows4.close(rows[1])  # an old handle does not close the new call
    assert rows4.is_open(again) and not rows4.is_open(rows[1])
    for row in (rows[0], again, rows[2], rows[3]):
        rows4.close(row)
    with pytest.raises(ConfigError, match="no row is open"):
        rows4.step(np.zeros((4, rows4.artifact.frame_size), np.float32))


def test_bad_input_is_named_and_harms_nobody(rows4):
    row = rows4.open()
    try:
        with pytest.raises(ConfigError, match=r"pcm must be \[4, 640\], got \[640\]"):
            rows4.step(np.zeros(640, np.float32))
        pcm = np.zeros((4, 640), np.float32)
        pcm[row, 5] = np.nan
        with pytest.raises(DataError, match="pcm of row 0 holds NaN or Inf"):
            rows4.step(pcm)
        pcm[row, 5] = 0
        pcm[3] = np.nan  # a closed row's samples do not matter
        assert np.isfinite(rows4.step(pcm).pcm).all()
        assert all(np.isfinite(value).all() for value in rows4._state.values())
    finally:
        rows4.close(row)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temprature": 1.0}, "unknown sampling field 'temprature'; did you mean temperature"),
        ({"top_k": 33}, "top_k=33 is outside what the artifact allows .0 to 32"),
        ({"temperature": -1.0}, "temperature=-1.0 is outside"),
        ({"temperature": float("nan")}, "temperature=nan is outside"),
    ],
)
def test_sampling_out_of_range(rows4, sampling, message):
    with pytest.raises(ConfigError, match=message):
        rows4.open(CallOptions(sampling=sampling))
    assert rows4.free_rows == 4


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(rows4, seed):
    with pytest.raises(ConfigError, match="must be at least 0 and below"):
        rows4.open(CallOptions(seed=seed))


def test_inputs_of_the_pure_function_are_checked(loaded):
    inputs = loaded.program("step", 4).inputs()
    inputs["pcm"] = inputs["pcm"][:, :-1]
    with pytest.raises(ConfigError, match=r"input pcm of step must be float32 \[4, 640\], got float32 \[4, 639\]"):
        loaded.program("step", 4)(loaded.weights, loaded.init_state(4), inputs)
    del inputs["pcm"]
    with pytest.raises(ConfigError, match="missing: ..pcm.."):
        loaded.program("step", 4)(loaded.weights, loaded.init_state(4), inputs)


class TestPrompt:
    def test_prompt_is_the_beginning_of_the_call(self, rows4):
        """A call prompted with columns of an earlier one continues as the earlier one did."""
        wave = waveforms(rows4, 14)[0]
        greedy = {"temperature": 0.0, "text_temperature": 0.0}
        [first], _ = play(rows4, [wave], [CallOptions(0, greedy)])
        prompt = first.codes[:, :6]
        state_steps = len(wave) // rows4.artifact.frame_size - 6
        row = rows4.open(CallOptions(sampling=greedy, prompt=prompt))
        silence = np.zeros((4, rows4.artifact.frame_size), np.float32)
        while not (frame := rows4.step(silence)).heard[row]:
            assert frame.index[row] < 6
        rows4.close(row)
        assert frame.index[row] == 6 and state_steps > 0
        # What is sampled for column 6 depends on columns before it alone, and these are the same.
        assert frame.codes[row][0] == first.codes[0, 6] and frame.codes[row][1] == first.codes[1, 6]

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            (np.zeros((3, 5), np.int32), r"integers \[7, T\] with T > 0, got int32 \[3, 5\]"),
            (np.zeros((7, 0), np.int32), "with T > 0"),
            (np.zeros((7, 5), np.float32), "must be integers"),
            (np.full((7, 5), 40, np.int32), "holds 40; ids are 0 to 31"),
            (np.full((7, 5), -1, np.int32), "holds -1"),
        ],
    )
    def test_bad_prompts_are_refused_before_the_call(self, rows4, prompt, message):
        with pytest.raises(ConfigError, match=message):
            rows4.open(CallOptions(prompt=prompt))
        assert rows4.free_rows == 4
