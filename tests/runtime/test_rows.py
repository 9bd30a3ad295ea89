"""The loaded program: rows, determinism, donation, errors."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.runtime import play as call
from moshijax.runtime import rows as runtime

SAMPLED = {"temperature": 0.9, "text_temperature": 0.9, "top_k": 20, "text_top_k": 20}


def waveforms(program, *lengths, seed=0):
    random = np.random.RandomState(seed)
    return [(random.randn(int(length * program.frame_size)) * 0.3).astype(np.float32) for length in lengths]


def same(a, b):
    np.testing.assert_array_equal(a.text_tokens, b.text_tokens)
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.pcm, b.pcm)


@pytest.mark.parametrize("name", ["step", "step_tokens"])
def test_every_state_array_is_donated(program4, name):
    size = sum(value.nbytes for value in program4.init_state().values())
    assert program4._compile(name).memory_analysis().alias_size_in_bytes == size


def test_state_is_constant_and_has_rows(program4):
    state = program4.init_state()
    shapes = {name: (value.shape, value.dtype) for name, value in state.items()}
    assert all(shape[0] == 4 for shape, _ in shapes.values())
    for _ in range(3):
        inputs = program4.inputs("step")
        inputs["active"][:] = True
        state, _ = program4.step(program4.weights, state, inputs)
    assert {name: (value.shape, value.dtype) for name, value in state.items()} == shapes


def test_call_does_not_depend_on_its_row_or_its_neighbours(program4):
    """Bit for bit: alone, among other calls, in every slot, and started at another time."""
    wave, *others = waveforms(program4, 30, 7, 11.5, 23, 5, 40, 13)
    [alone], _ = call.play(program4, [wave], [5], SAMPLED)
    assert len(np.unique(alone.codes[1])) > 3, "sampling must do something for this to mean anything"
    for position in (0, 1, 3, 6):
        waves = others[:position] + [wave] + others[position:]
        seeds = [5 if other is wave else 100 + i for i, other in enumerate(waves)]
        calls, _ = call.play(program4, waves, seeds, SAMPLED)
        same(calls[position], alone)


def test_a_row_is_data(program4):
    """The state of a call, moved into another slot half way, goes on as if nothing had happened."""
    wave = waveforms(program4, 16)[0].reshape(16, -1)

    def run(move_at):
        state = program4.init_state()
        slot, out = 0, []
        for t in range(16):
            if t == move_at:
                state = jax.tree.map(lambda x: x[np.array([3, 1, 2, 0])], state)
                slot = 3
            inputs = program4.inputs("step")
            inputs["active"][slot] = True
            inputs["seed"][slot] = (1, 2)
            inputs["pcm"][slot] = wave[t]
            state, outputs = program4.step(program4.weights, state, inputs)
            out.append(jax.tree.map(lambda x, slot=slot: np.asarray(x)[slot], outputs))
        return out

    for stayed, moved in zip(run(None), run(8), strict=True):
        jax.tree.map(np.testing.assert_array_equal, stayed, moved)


def test_seeds_and_sampling_are_per_row(program4):
    wave = waveforms(program4, 20)[0]
    settings = [
        SAMPLED,
        SAMPLED,
        {"temperature": 0.0, "text_temperature": 0.0},
        {**SAMPLED, "top_k": 1, "text_top_k": 1},
    ]
    (a, b, greedy, top1), _ = call.play(program4, [wave] * 4, [1, 2, 3, 4], settings)
    assert (a.codes != b.codes).any()
    same(greedy, top1)


def test_the_first_executed_step_only_primes(program4):
    """Its audio is ignored, nothing is returned, and the next step is the first that is heard."""
    wave = waveforms(program4, 6)[0].reshape(6, -1)

    def run(first):
        state, out = program4.init_state(), []
        for t, pcm in enumerate([first, *wave]):
            inputs = program4.inputs("step")
            inputs["active"][2] = True
            inputs["pcm"][2] = pcm
            state, outputs = program4.step(program4.weights, state, inputs)
            assert bool(outputs["ready"][2]) == (t > 0)
            assert not np.asarray(outputs["ready"])[[0, 1, 3]].any()
            out.append(outputs)
        return out

    silent, loud = run(np.zeros_like(wave[0])), run(np.full_like(wave[0], 0.9))
    jax.tree.map(np.testing.assert_array_equal, silent, loud)
    assert (np.asarray(silent[0]["codes"][2]) == runtime.UNGENERATED).all()
    assert (np.asarray(silent[0]["pcm"]) == 0).all() and int(silent[0]["text_token"][2]) == runtime.UNGENERATED


def test_reset_equals_a_fresh_state(program4):
    wave = waveforms(program4, 12)[0].reshape(12, -1)

    def steps(state, frames, reset_first):
        out = []
        for t, pcm in enumerate(frames):
            inputs = program4.inputs("step")
            inputs["active"][1] = True
            inputs["reset"][1] = reset_first and t == 0
            inputs["pcm"][1] = pcm
            state, outputs = program4.step(program4.weights, state, inputs)
            out.append(jax.tree.map(lambda x: np.asarray(x)[1], outputs))
        return state, out

    _, fresh = steps(program4.init_state(), wave, False)
    used, _ = steps(program4.init_state(), wave[::-1], False)
    _, again = steps(used, wave, True)
    for a, b in zip(fresh, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_paused_rows_go_on_where_they_were(program4):
    wave = waveforms(program4, 10)[0].reshape(10, -1)
    other = waveforms(program4, 20, seed=1)[0].reshape(20, -1)

    def run(pauses):
        row, neighbour = program4.open(seed=3), program4.open(seed=4)
        frames, sent = [], 0
        for t in range(10 + len(pauses)):
            pcm = np.zeros((4, program4.frame_size), np.float32)
            active = np.ones(4, bool)
            active[row] = t not in pauses
            pcm[row], pcm[neighbour] = (wave[sent] if t not in pauses else 0.5), other[t]
            frame = program4.step(pcm, active=active)
            assert bool(frame.ready[row]) == (t not in pauses)
            if t not in pauses:
                sent += 1
                frames.append((frame.codes[row], frame.pcm[row]))
        program4.close(row)
        program4.close(neighbour)
        return frames

    for a, b in zip(run(()), run((3, 4, 7)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_forced_tokens_come_back(program4):
    state = program4.init_state()
    texts, codes = [7, 9, 11, 13, 15], [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]]
    out = []
    for text, code in zip(texts, codes, strict=True):
        inputs = program4.inputs("step")
        inputs["active"][:] = True
        inputs["force_text"][:] = text
        inputs["force_codes"][:] = code
        state, outputs = program4.step(program4.weights, state, inputs)
        out.append(np.asarray(outputs["codes"])[0])
    # Text and the semantic level are sampled for the column after the one that goes in, acoustic levels one later.
    assert [int(column[0]) for column in out[1:]] == texts[:4]
    assert [int(column[1]) for column in out[1:]] == [1, 4, 7, 10]
    assert [int(column[2]) for column in out[1:]] == [5, 8, 11, 14]


def test_pad_bonus_silences_the_text(program4):
    wave = waveforms(program4, 20)[0]
    pad = program4.manifest["text"]["special"]["pad"]
    (free, padded), _ = call.play(program4, [wave] * 2, [1, 1], [SAMPLED, {**SAMPLED, "pad_bonus": 1000.0}])
    assert (padded.text_tokens == pad).all() and not (free.text_tokens == pad).all()


def test_batch_sizes_agree(program1, program4):
    """Greedy codes of the one program in the other; between programs only the last digits may differ."""
    wave = waveforms(program4, 25)[0]
    greedy = {"temperature": 0.0, "text_temperature": 0.0}
    [one], _ = call.play(program1, [wave], [0], greedy)
    [four], _ = call.play(program4, [wave], [0], greedy)
    np.testing.assert_array_equal(one.codes, four.codes)
    np.testing.assert_allclose(one.pcm, four.pcm, atol=1e-4)


def test_rows_run_out_and_come_back(program4):
    rows = [program4.open() for _ in range(4)]
    with pytest.raises(MoshijaxError, match="all 4 rows are open"):
        program4.open()
    program4.close(rows[1])
    program4.close(rows[1])
    again = program4.open()
    assert again.slot == rows[1].slot and program4.free_rows == 0
    program4.close(rows[1])  # an old handle does not close the new call
    assert program4.is_open(again) and not program4.is_open(rows[1])
    for row in (rows[0], again, rows[2], rows[3]):
        program4.close(row)
    with pytest.raises(ConfigError, match="no row is open"):
        program4.step(np.zeros((4, program4.frame_size), np.float32))


def test_bad_input_is_named_and_harms_nobody(program4):
    row = program4.open()
    try:
        with pytest.raises(ConfigError, match=r"pcm must be \[4, 640\], got \[640\]"):
            program4.step(np.zeros(640, np.float32))
        pcm = np.zeros((4, 640), np.float32)
        pcm[row, 5] = np.nan
        with pytest.raises(DataError, match="pcm of row 0 holds NaN or Inf"):
            program4.step(pcm)
        pcm[row, 5] = 0
        pcm[3] = np.nan  # a closed row's samples do not matter
        assert np.isfinite(program4.step(pcm).pcm).all()
        assert all(np.isfinite(value).all() for value in program4.state.values())
    finally:
        program4.close(row)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temprature": 1.0}, "unknown sampling field 'temprature'; did you mean temperature"),
        ({"top_k": 33}, "top_k=33 is outside what the artifact allows .0 to 32"),
        ({"temperature": -1.0}, "temperature=-1.0 is outside"),
        ({"temperature": float("nan")}, "temperature=nan is outside"),
    ],
)
def test_sampling_out_of_range(program4, sampling, message):
    with pytest.raises(ConfigError, match=message):
        program4.open(sampling=sampling)
    assert program4.free_rows == 4


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(program4, seed):
    with pytest.raises(ConfigError, match="must be at least 0 and below"):
        program4.open(seed=seed)


def test_inputs_of_the_pure_function_are_checked(program4):
    inputs = program4.inputs("step")
    inputs["pcm"] = inputs["pcm"][:, :-1]
    with pytest.raises(ConfigError, match=r"input pcm of step must be float32 \[4, 640\], got float32 \[4, 639\]"):
        program4.step(program4.weights, program4.init_state(), inputs)
    del inputs["pcm"]
    with pytest.raises(ConfigError, match="missing: ..pcm.."):
        program4.step(program4.weights, program4.init_state(), inputs)


class TestPrompt:
    def test_prompt_is_the_beginning_of_the_call(self, program4):
        """A call prompted with columns of an earlier one goes on as the earlier one did."""
        wave = waveforms(program4, 14)[0]
        greedy = {"temperature": 0.0, "text_temperature": 0.0}
        [first], _ = call.play(program4, [wave], [0], greedy)
        prompt = first.codes[:, :6]
        state_steps = len(wave) // program4.frame_size - 6
        row = program4.open(sampling=greedy, prompt=prompt)
        frame = program4.step(np.zeros((4, program4.frame_size), np.float32))
        program4.close(row)
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
    def test_bad_prompts_are_refused_before_the_call(self, program4, prompt, message):
        with pytest.raises(ConfigError, match=message):
            program4.open(prompt=prompt)
        assert program4.free_rows == 4
