"""What a lowered program computes, read from its text: types and operations that a CPU hides behind equal results."""

from __future__ import annotations

import importlib.util
import math
import re
from typing import Any, NamedTuple

import jax

#: The extra compile-cuda is here, which compiles for NVIDIA cards that are not.
HAS_CUDA_COMPILER = bool(importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda13"))


class Type(NamedTuple):
    """Shape and dtype of a value in a program."""

    shape: tuple[int, ...]
    dtype: str


def lowered(function: Any, *arguments: Any) -> str:
    """Return the text of a program, for arguments of which shapes are enough."""
    return jax.jit(function).lower(*arguments).as_text()


def _types(pattern: str, program: str) -> list[Type]:
    found = []
    for text in re.findall(pattern, program):
        *shape, dtype = text.split("x")
        found.append(Type(tuple(map(int, shape)), dtype))
    return found


def products(program: str) -> list[Type]:
    """Return the results of all matrix products, in the order of the program."""
    return _types(r"stablehlo\.dot_general .*-> tensor<([^>]*)>", program)


def products_of_elements(program: str) -> list[Type]:
    """Return the results of all products of element by element, in the order of the program."""
    return _types(r"stablehlo\.multiply .* : tensor<([^>]*)>", program)


def sums(program: str) -> list[Type]:
    """Return the results of all sums over axes, in the order of the program."""
    return _types(r"stablehlo\.reduce\(.*applies stablehlo\.add across .*-> tensor<([^>]*)>", program)


def results(program: str, operation: str) -> list[Type]:
    """Return the results of all operations of a kind on values one by one, such as "multiply"."""
    return _types(rf"stablehlo\.{operation} [^:]*: (?:\([^)]*\) -> )?tensor<([^>]*)>", program)


def operands(program: str, operation: str) -> list[Type]:
    """Return the first operand of every operation of a kind, such as "gather"; one with a region ends by its types."""
    pattern = rf'"?stablehlo\.{operation}"?\(.*?\)? : \(tensor<([^>]*)>'
    return _types(pattern, re.sub(r"\(\{.*?\}\)", "", program, flags=re.DOTALL))


def conditionals(program: str) -> int:
    """Count the branches that are chosen when the program runs."""
    return len(re.findall(r"stablehlo\.(?:case|if)\b", program))


class Exchange(NamedTuple):
    """What devices send each other at one place of a compiled program.

    Attributes:
      kind: such as "all-gather".
      values: that one device has afterwards.
      name: of the operation in the model that it belongs to.
    """

    kind: str
    values: int
    name: str


def exchanges(program: str) -> list[Exchange]:
    """Return the collectives of a compiled program, given its text."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = []
    for line in program.splitlines():
        if match := re.match(rf"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({kinds})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            values = sum(math.prod(int(size) for size in shape.split(",") if size) for shape in shapes)
            name = re.search(r'op_name="([^"]*)"', line)
            found.append(Exchange(match[2], values, name[1] if name else ""))
    return found
