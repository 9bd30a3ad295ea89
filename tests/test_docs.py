"""README and guides: commands exist with the options they show, links lead somewhere, examples run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from moshijax import config, shipped
from moshijax.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "data").glob("*/README.md")),
]  # fmt: skip
EXPERIMENTS = shipped.folder("experiments")
RECIPES = [str(path.relative_to(EXPERIMENTS)) for path in EXPERIMENTS.rglob("*.gin")]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[str]:
    """Every `moshijax ...` command line of the page's shell blocks, and every one inside backticks."""
    found = []
    for block in blocks(page, "sh", "bash", ""):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||;| \| ", line):
                part = part.strip().removeprefix("$ ").removeprefix(".venv/bin/")
                if part.startswith("moshijax "):
                    found.append(part)
    return found


def unknown_options(command: click.Command, words: list[str]) -> list[str]:
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    return [
        option for option in options if option not in (known | {"--help", "-h"}) and not option.startswith("--gin.")
    ]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_documented_commands_exist_with_the_options_they_show(page) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)[1:]
        command: click.Command = main.cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            inner = command.get_command(click.Context(command), words[0])
            assert inner is not None, f"{line!r}: no command {words[0]!r}"
            command, words = inner, words[1:]
        if command.name in ("train", "plan", "eval") and words and "/" in words[0]:
            assert words[0] in RECIPES, f"{line!r}: no recipe {words[0]!r}"
        if command.name == "train" and words and words[0] in RECIPES:
            overrides = [word.removeprefix("--gin.") for word in words if word.startswith("--gin.")]
            config.load(words[0], overrides)
        shown = words if not isinstance(command, click.Group) else [w for w in words if w != "--version"]
        assert not unknown_options(command, shown), f"{line!r}: no option {unknown_options(command, shown)}"


def tools(page: Path) -> list[list[str]]:
    """The words after `python -m` of every command that starts a module of tools/."""
    return [shlex.split(line, comments=True) for line in re.findall(r"python -m (tools\.[^`\n]*)", page.read_text())]


@pytest.mark.parametrize("page", [page for page in PAGES if tools(page)], ids=lambda page: page.name)
def test_documented_tools_exist_with_the_options_they_show(page) -> None:
    for module, *words in tools(page):
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert path.is_file(), f"{module} is not there"
        source = "".join(file.read_text() for file in (path, path.with_name("support.py")) if file.is_file())
        options = re.findall(r"add_argument\(\s*[\"'](--[\w-]+)", source)
        assert not {word for word in words if word.startswith("--")} - set(options), f"{module} {words}: no such option"


def test_the_functions_that_the_map_names_are_there() -> None:
    """`folder/file.py:name` or `folder/file.py:Class.method`, with folders below moshijax/."""
    named = re.findall(r"`([\w/]+\.py):([\w.]+)`", (ROOT / "docs" / "architecture.md").read_text())
    for path, name in named:
        body = ast.parse((ROOT / "moshijax" / path).read_text()).body
        for part in name.split("."):
            found = [node for node in body if isinstance(node, DEFINITIONS) and node.name == part]
            assert found, f"moshijax/{path} has no {name}"
            body = found[0].body
    assert len(named) > 30


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_and_pictures_of_a_page_are_there(page) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target} is not there"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """What `"artifact"` stands for in an example."""
    from moshijax.export.artifact import build
    from moshijax.testing.tiny import tiny_models

    return build(*tiny_models(), tmp_path_factory.mktemp("docs") / "artifact")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_examples_of_a_page_run_one_after_the_other(page, tmp_path, request) -> None:
    text = "\n".join(blocks(page, "python"))
    if '"artifact"' in text:
        (tmp_path / "artifact").symlink_to(request.getfixturevalue("artifact"))
    if '"mine.gin"' in text:
        (tmp_path / "mine.gin").write_text((EXPERIMENTS / "nano" / "pretraining.gin").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{text}\n{done.stderr[-2000:]}"


def test_every_guide_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"{page.name} is not in docs/README.md"


def test_the_readme_names_the_commands_that_are_tested() -> None:
    """The first screen: one command for the main job, one for the tests, which is the one that CI runs."""
    first, second, *_ = blocks(ROOT / "README.md", "sh")
    assert first.strip().endswith("moshijax quickstart") and "pip install '.[quickstart]'" in first
    assert second.strip() == "bash tools/test.sh"
    assert "bash tools/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_the_example_of_the_recipe_guide_loads(tmp_path) -> None:
    (text,) = [block for block in blocks(ROOT / "docs" / "recipes.md", "") if "dynamic_registration" in block]
    (tmp_path / "base.gin").write_text((EXPERIMENTS / "nano" / "pretraining.gin").read_text())
    (tmp_path / "mine.gin").write_text(text)
    made = config.load(tmp_path / "mine.gin")
    assert (
        made.steps == 2000 and made.optimizer.learning_rate == 3e-4 and made.task.text.optimizer.learning_rate == 1e-4
    )
    assert made.optimizer.warmup_steps == made.task.text.optimizer.warmup_steps == 100

    errors = {7: "stepz = 3", 8: "steps = 'abc'"}
    (shown,) = [block for block in blocks(ROOT / "docs" / "recipes.md", "") if block.startswith("error:")]
    for (line, bad), message in zip(errors.items(), shown.splitlines(), strict=True):
        padding = "\n" * (line - 3)
        (tmp_path / "mine.gin").write_text(
            f"include 'base.gin'\nfrom moshijax.train import experiment\n{padding}experiment.ExperimentConfig.{bad}\n"
        )
        with pytest.raises(ValueError) as error:
            config.load(tmp_path / "mine.gin")
        assert (
            str(error.value)
            .replace(f"{tmp_path}/", "")
            .startswith(message.removeprefix("error: ").removesuffix("...").rstrip())
        )


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py):(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    for path, name in named:
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), f"tests/{path} has no {name}"
    assert len(named) > 20
