"""Plans of artifacts for cards that are not there; what needs no compiler of theirs is checked without one."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest
from jax import export as jax_export

from moshijax.compiled import report
from moshijax.export import artifact
from moshijax.testing.tiny import tiny_models
from tests.programs import HAS_CUDA_COMPILER


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return artifact.build(
        *tiny_models(),
        tmp_path_factory.mktemp("plan") / "artifact",
        ("cpu", "cuda"),
        (1, 2),
        "bfloat16",
        top_k_limit=8,
        prefill_lengths=(4,),
    )


def test_a_program_for_this_machine_is_reported(built):
    exported = jax_export.deserialize(bytearray((built / "step.cpu.b2.jaxexp").read_bytes()))
    found = report.compile_exported(exported, jax.devices()[0])
    arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    size = {name: x.size * x.dtype.itemsize for part in arguments for name, x in part.items()}
    state = sum(x.size * x.dtype.itemsize for x in arguments[1].values())
    assert found.aliased >= 0.99 * state and found.arguments >= sum(size.values()) - state
    assert 0 < found.floor <= found.arguments and found.floor <= found.moved
    # of a row: the products with all parameters but the look-ups, and little else
    products = sum(x.size for name, x in arguments[0].items() if name.startswith("lm/") and "embedding" not in name)
    assert found.flops > 2 * 2 * 0.9 * products
    text = "\n".join(report.lines(found, None))
    assert "times the floor of" in text and "kernels" in text and "ms at least" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no topology is given"),
        (("--topology", "cuda:l40s", "--devices", 2), "--devices is for recipes"),
        (("--topology", "cuda:l40s", "--gin.seed=1"), "--gin.seed=1 is for recipes"),
        (("--topology", "cuda:b200"), "the cards are cuda:a100"),
        (("--topology", "v5p-8"), "has several devices"),
        (("--topology", "v5p-2"), "has no platform tpu, but cpu, cuda; export it again with --platforms tpu"),
        (("--topology", "cuda:h100", "--batch", 3), "has no batch size 3, but 1, 2; export it again with --batch 3"),
    ],
)
def test_requests_that_cannot_be(built, cli, options, message):
    code, out, err = cli("plan", built, *options)
    assert code == 2 and message in err and not out


def test_a_recipe_has_no_calls(cli):
    code, _, err = cli("plan", "quickstart/moshi.gin", "--devices", 1, "--batch", 2)
    assert code == 2 and "--batch is for artifacts" in err
    code, _, err = cli("plan", "nowhere", "--topology", "cuda:h100", "--batch", 2)
    assert code == 2 and "there is no artifact at nowhere: check the path" in err


def plan(built, *options):
    command = [sys.executable, "-m", "moshijax.cli.main", "plan", str(built), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": ""})


@pytest.mark.skipif(HAS_CUDA_COMPILER, reason="the extra compile-cuda is here")
def test_a_card_without_its_compiler_is_refused(built):
    done = plan(built, "--topology", "cuda:l40s")
    assert done.returncode == 2 and "pip install 'moshijax[compile-cuda]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not HAS_CUDA_COMPILER, reason="needs the extra compile-cuda")
@pytest.mark.parametrize("types", [None, "int8"])
def test_a_step_for_a_card_has_neither_conditionals_nor_copies_of_caches(built, types, tmp_path):
    if types is not None:
        built = artifact.rebuild(built, tmp_path / "artifact", weights_dtype=types, cache_dtype=types)
    done = plan(built, "--topology", "cuda:l40s", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert "step of artifact for 2 calls on one NVIDIA L40S, compiled, not run" in done.stdout
    assert " 0 conditionals, 0 loops" in done.stdout and "\ncopy " not in done.stdout
