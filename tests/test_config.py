"""Recipes: gin text to a checked dataclass tree, and back."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from moshijax import config
from moshijax.errors import ConfigError
from tests import config_classes
from tests.config_classes import SMALL, Experiment, Model, Stack

BASE = """
from __gin__ import dynamic_registration
from tests import config_classes

HEADS = 4

config_classes.Experiment:
  model = @config_classes.Model()
  steps = 5
config_classes.Model.temporal = @temporal/config_classes.Stack()
config_classes.Model.depth = @depth/config_classes.Stack()
config_classes.Stack.num_heads = %HEADS
temporal/config_classes.Stack.dim = 16
depth/config_classes.Stack.dim = 12
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "recipe.gin"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def load(path, *overrides) -> Experiment:
    return config.load(path, overrides, root=Experiment)


def test_scopes_and_macros_reach_the_objects_they_name(recipe) -> None:
    got = load(recipe(BASE))
    assert got == Experiment(model=Model(temporal=Stack(16, 4), depth=Stack(12, 4)), steps=5)
    assert type(got.model.temporal) is Stack
    hash(got)


def test_dump_writes_every_field_and_loads_back_equal(recipe) -> None:
    got = load(
        recipe(
            BASE + "config_classes.Experiment.extra = (@a/config_classes.Stack(), @b/config_classes.Stack())\n"
            "b/config_classes.Stack.dropout = 1\n"
        )
    )
    text = config.dump(got)
    assert "save = True" in text and "delays = (0, 1)" in text
    again = load(recipe(text, "again.gin"))
    assert again == got and config.dump(again) == text
    assert again.extra[1].dropout == 1.0 and isinstance(again.extra[1].dropout, float)


def test_dump_without_defaults_writes_what_was_chosen_and_loads_back_equal(recipe) -> None:
    got = load(recipe(BASE + "config_classes.Experiment.path = 'there'\n"))
    text = config.dump(got, defaults=False)
    assert "path = 'there'" in text and "steps = 5" in text
    for default in ("save", "delays", "norm", "rate", "extra"):
        assert f"{default} =" not in text
    assert load(recipe(text, "again.gin")) == got


def test_include_is_found_beside_the_including_file_and_later_bindings_win(recipe, tmp_path, monkeypatch) -> None:
    recipe(BASE, "deep/base.gin")
    path = recipe(
        "from __gin__ import dynamic_registration\ninclude 'base.gin'\nfrom tests import config_classes\n"
        "HEADS = 2\nconfig_classes.Experiment.steps = 7\n",
        "deep/top.gin",
    )
    monkeypatch.chdir("/")
    got = load(path)
    assert got.steps == 7 and got.model.temporal == Stack(16, 2)


def test_recipes_that_ship_are_found_by_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "shipped.gin").write_text(BASE)
    monkeypatch.setattr(config.shipped, "folder", lambda name: tmp_path)
    assert load("shipped.gin").steps == 5


def test_an_unknown_recipe_is_told_the_shipped_ones_of_a_similar_name() -> None:
    with pytest.raises(ConfigError) as error:
        load("moshi_finetuning.gin")
    assert "no recipe moshi_finetuning.gin" in str(error.value)
    assert "moshi/finetuning.gin" in str(error.value) and "eval/codec.gin" not in str(error.value)
    with pytest.raises(ConfigError, match="eval/codec.gin"):
        load("xyzzy")


def test_a_constant_of_an_imported_module_is_a_value_whose_fields_can_be_overridden(recipe) -> None:
    path = recipe("from tests import config_classes\nconfig_classes.Experiment.model = %config_classes.SMALL\n")
    assert load(path).model is SMALL
    assert load(path, "model.temporal.dim=6").model == Model(temporal=Stack(dim=6))
    assert SMALL.temporal.dim == 4


def test_overrides_apply_together_so_that_dependent_fields_can_change(recipe) -> None:
    got = load(
        recipe(BASE), "model.temporal.dim=15", "model.temporal.num_heads=5", "path=runs/a b", "rate=3", "HEADS=3"
    )
    assert got.model.temporal == Stack(15, 5) and got.path == "runs/a b" and got.rate == 3.0
    assert got.model.depth == Stack(12, 3)


# What is wrong with it, and what the one line must say.
WRONG = {
    "unknown field": ("config_classes.Experiment.stepz = 3", ["recipe.gin:15", "'stepz'", "did you mean 'steps'"]),
    "unknown class": ("config_classes.Experimint.steps = 3", ["recipe.gin:15", "'Experimint'", "'Experiment'"]),
    "module not imported": ("config_clases.Experiment.steps = 3", ["not imported", "'config_classes'"]),
    "no such module": ("import moshijax.nope", ["recipe.gin:15", "moshijax.nope", "correct the import"]),
    "unknown macro": ("config_classes.Experiment.steps = %HEDS", ["%HEDS", "did you mean 'HEADS'"]),
    "string for int": ("config_classes.Experiment.steps = 'abc'", ["recipe.gin:15", "steps = 'abc'", "takes int"]),
    "quoted number": ("config_classes.Experiment.steps = '3'", ["write it without quotes"]),
    "float for int": ("config_classes.Experiment.steps = 1.5", ["steps = 1.5", "takes int"]),
    "bool for int": ("config_classes.Experiment.steps = True", ["steps = True", "takes int"]),
    "int for bool": ("config_classes.Experiment.save = 1", ["save = 1", "takes bool"]),
    "number for string": ("config_classes.Experiment.path = 3", ["takes str", "quotes"]),
    "list for tuple": ("config_classes.Model.delays = [0, 1]", ["model.delays", "round brackets"]),
    "wrong choice": ("config_classes.Stack.norm = 'layernorm'", ["'layernorm'", "did you mean 'layer_norm'"]),
    "wrong object": (
        "config_classes.Experiment.model = @depth/config_classes.Stack()",
        ["model = Stack(", "takes Model"],
    ),
    "class, not object": ("config_classes.Model.depth = @config_classes.Stack", ["write @config_classes.Stack()"]),
    "heads do not divide": ("temporal/config_classes.Stack.dim = 15", ["model.temporal", "15", "num_heads 4"]),
    "misspelt scope": ("temporall/config_classes.Stack.dim = 16", ["temporall/Stack.dim", "'temporal'"]),
    "syntax": ("config_classes.Experiment.steps 3", ["recipe.gin:15", "'='"]),
    "open bracket": ("config_classes.Model.delays = (0, 1", ["close every bracket"]),
    "include not there": ("include 'nope.gin'", ["nope.gin", "no recipe"]),
    "own include": ("include 'recipe.gin'", ["includes itself"]),
    "object of itself": (
        "config_classes.Experiment.extra = (@config_classes.Experiment(),)",
        ["Experiment() is part of itself"],
    ),
    "macro of itself": ("HEADS = %HEADS", ["%HEADS", "itself"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_gets_one_line_with_value_rule_and_remedy(recipe, case) -> None:
    line, words = WRONG[case]
    with pytest.raises(ConfigError) as error:
        load(recipe(BASE.strip() + "\n\n" + line + "\n"))
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stepz=3", ["--gin.stepz", "did you mean 'steps'"]),
        ("model.temporal.dims=3", ["'dims'", "did you mean 'dim'"]),
        ("steps.more=3", ["steps", "no fields"]),
        ("steps", ["path.to.field=VALUE"]),
        ("steps=abc", ["--gin.steps", "takes int"]),
        ("extra=[1]", ["round brackets"]),
    ],
)
def test_a_wrong_override_gets_one_line(recipe, override, words) -> None:
    with pytest.raises(ConfigError) as error:
        load(recipe(BASE), override)
    for word in words:
        assert word in str(error.value)


def test_missing_value_names_its_field(recipe) -> None:
    with pytest.raises(ConfigError, match="model has no value"):
        load(recipe("from tests import config_classes\nconfig_classes.Experiment.steps = 3\n"))


def test_a_recipe_that_is_a_folder_binary_or_absent(recipe, tmp_path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    binary = tmp_path / "weights.gin"
    binary.write_bytes(b"\x80\x04\x95")
    with pytest.raises(ConfigError, match=r"weights\.gin is not UTF-8"):
        load(binary)
    with pytest.raises(ConfigError, match="no recipe .*absent"):
        load(tmp_path / "absent.gin")


def test_two_threads_read_different_recipes(recipe) -> None:
    paths = [recipe(BASE + f"config_classes.Experiment.steps = {i}\n", f"{i}.gin") for i in range(8)]
    got: dict[int, int] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: load(paths[i]).steps})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {i: i for i in range(8)}


def test_reading_a_recipe_says_nothing_in_a_fresh_process(recipe) -> None:
    code = (
        "from moshijax import config; from tests.config_classes import Experiment; "
        f"config.load({str(recipe(BASE))!r}, root=Experiment)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=config_classes.__file__.rsplit("/", 2)[0]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
