"""Figures of small programs, compiled for the CPU, whose traffic can be counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from moshijax.compiled import report
from moshijax.compiled.program import Program

F32 = jnp.float32


def spec(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def compiled(function, *arguments, donate=()):
    return Program(jax.jit(function, donate_argnums=donate).lower(*arguments).compile().as_text())


def flops(function, *arguments):
    return Program(jax.jit(function).lower(*arguments).as_text("hlo")).flops()


def test_a_product_reads_its_operands_and_writes_its_result():
    program = compiled(lambda a, b: a @ b, spec(64, 32), spec(32, 16))
    assert program.floor_bytes() == 4 * (64 * 32 + 32 * 16)
    assert program.moved_bytes() == program.floor_bytes() + 4 * 64 * 16
    assert program.kernels() == 1 and not program.moves()


def test_a_look_up_reads_the_rows_that_it_gives():
    program = compiled(lambda table, ids: table[ids] * 2, spec(1000, 32), spec(5, dtype=jnp.int32))
    assert program.floor_bytes() == 4 * (5 * 32 + 5)
    assert program.moved_bytes() == 4 * (2 * 5 * 32 + 5)


def test_an_update_in_place_writes_the_update_alone():
    def write(cache, new, at):
        return jax.lax.dynamic_update_slice(cache, new, (at, 0))

    arguments = spec(1000, 32), spec(1, 32), spec(dtype=jnp.int32)
    assert compiled(write, *arguments, donate=0).moved_bytes() < 8 * 4 * 32
    copying = compiled(write, *arguments)  # what the caller keeps is copied first
    assert copying.moved_bytes() >= 2 * 4 * 1000 * 32
    ((name, (times, size)),) = copying.moves().items()
    assert name.startswith("copy f32[1000,32] of argument cache") and (times, size) == (1, 2 * 4 * 1000 * 32)


def test_a_conditional_costs_its_dearest_branch():
    def choose(flag, x):
        return jax.lax.cond(flag, jnp.sin, lambda x: x @ x, x)

    program = compiled(choose, spec(dtype=bool), spec(100, 100))
    assert program.count("conditional") == 1
    assert 2 * 4 * 100 * 100 <= program.moved_bytes() < 2.1 * 4 * 100 * 100


def test_a_loop_counts_once_for_each_of_its_iterations():
    def loop(w):
        return jax.lax.scan(lambda x, w: (x @ w, None), w[0], w)[0]

    assert flops(loop, spec(7, 100, 100)) == 7 * 2 * 100**3
    program = compiled(loop, spec(7, 100, 100))
    assert program.count("while") == 1
    assert 7 * 3 * 4 * 100 * 100 <= program.moved_bytes() < 8 * 8 * 4 * 100 * 100


def test_arithmetic_of_batched_products_and_grouped_convolutions():
    assert flops(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), spec(3, 4, 5), spec(3, 5, 7)) == 2 * 3 * 4 * 5 * 7

    def grouped(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=2
        )

    assert flops(grouped, spec(2, 20, 6), spec(5, 3, 8)) == 2 * (2 * 8 * 8) * 5 * 3


HLO = """\
HloModule step

%fused (p: bf16[8,16]) -> f32[8,16] {
  %p = bf16[8,16]{1,0} parameter(0)
  ROOT %c = f32[8,16]{1,0} convert(%p)
}

ENTRY %main (w: bf16[8,16], x: f32[16]) -> f32[32,16] {
  %w = bf16[8,16]{1,0} parameter(0), metadata={op_name="weights['layers_3/kernel']"}
  %x = f32[16]{0} parameter(1)
  %wide = f32[8,16]{1,0} fusion(%w), kind=kLoop, calls=%fused
  %start = (f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%wide), dimensions={0}
  %done = f32[32,16]{1,0} all-gather-done(%start)
  %attention = (f32[32,16]{1,0}, u8[4096]{0}) custom-call(%done, %x), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %y = f32[32,16]{1,0} get-tuple-element(%attention), index=0
}
"""


def test_what_only_accelerators_have():
    """Collectives that run beside others, kernels of libraries with work space, weights converted whole."""
    program = Program(HLO)
    assert program.collectives() == {"all-gather": (1, 4 * 32 * 16)}
    assert program.calls("fmha") == {"__cudnn$fmhaSoftmax": 1}
    assert program.moves() == {"convert f32[8,16] of argument weights['layers_N/kernel']": (1, (2 + 4) * 8 * 16)}
    gathered, attended = 4 * (8 * 16 + 32 * 16), 4 * (32 * 16 + 16 + 32 * 16)
    assert program.moved_bytes() == (2 + 4) * 8 * 16 + gathered + attended
    assert program.floor_bytes() == 2 * 8 * 16 + 4 * 16


TRAINING = """\
HloModule step

%fused (x: bf16[64,32], w: bf16[16,32]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  ROOT %product = bf16[64,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

ENTRY %main (x: bf16[64,32], w: bf16[16,32], q: bf16[2,8,4,16]) -> bf16[64,16] {
  %x = bf16[64,32]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %q = bf16[2,8,4,16]{3,2,1,0} parameter(2)
  %library = (bf16[64,16]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %forward = (bf16[2,4,8,16]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax"
  %back = (bf16[2,4,8,16]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %y = bf16[64,16]{1,0} get-tuple-element(%library), index=0
  %moved = bf16[64,16]{0,1} copy(%y)
  %other = bf16[64,16]{1,0} negate(%y)
  ROOT %again = bf16[64,16]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused
}
"""


def test_arithmetic_and_traffic_of_a_program_for_cards_by_what_they_are_for():
    program = Program(TRAINING)
    product, attention = 2 * 64 * 16 * 32, 2 * 2 * 4 * 8 * 8 * 16
    assert program.flops() == 2 * product + (2 + 5) * attention
    assert program.traffic() == {
        "products": 2 * 2 * (64 * 32 + 16 * 32 + 64 * 16),
        "attention": 2 * 2 * 2 * (2 * 8 * 4 * 16),
        "collectives": 0,
        "copies": 2 * 2 * 64 * 16,
        "others": 2 * 2 * 64 * 16,
    }
    assert sum(program.traffic().values()) == program.moved_bytes()


@pytest.mark.parametrize(("size", "text"), [(2_345_678, "2.35 MB"), (99e6, "99.00 MB"), (1.5e9, "1.50 GB")])
def test_sizes(size, text):
    assert report.size_text(size) == text


def test_a_sum_of_several_arrays_counts_all_of_them():
    text = HLO.replace(
        "(f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start", "(f32[8,16]{1,0}, f32[32,16]{1,0}) all-reduce-start"
    )
    assert Program(text).collectives() == {"all-reduce": (1, 4 * (8 * 16 + 32 * 16))}


def test_a_reader_sees_the_largest_moves_and_the_sum_of_the_others():
    moves = {f"copy {number}": (2, 10_000_000 * (20 - number)) for number in range(20)}
    found = report.lines(report.Report(4, 3, 2, 1, 12, 8, 2e9, 5, 0, 0, moves), None)
    assert found[0].startswith("memory       0.00 MB: arguments 0.00 MB") and "1.50 times the floor" in found[1]
    assert found[4] == "copy         0.20 GB in 2: copy 0" and len(found) == 4 + report.SHOWN_MOVES + 1
    assert found[-1] == "copies       0.36 GB in 8 more places"
