"""What a program does to the memory of its device, read from its optimised HLO text; and its arithmetic.

XLA says nothing about the traffic of programs for GPUs, so it is counted here, instruction by instruction: what an
instruction reads of its operands and what it writes. Slices and gathers read what they give, updates in place write the
update alone, everything else reads whole operands. Caches of the device are not modelled: what two instructions read
counts twice.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

WIDTHS = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-$]+) (?:\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-$]+) = ")

#: Instructions that touch no memory.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
#: Instructions that say what others do.
NESTED = {"while", "conditional", "call", "async-start"}
COLLECTIVES = {"all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all"}
_RENAMES = {"bitcast", "reshape", "copy"}
_PICKS = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice", "scatter"}
_MOVES = {"copy", "transpose", "concatenate", "convert", "pad", "slice", "dynamic-slice"}


def arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return (dtype, shape) of every array in a type."""
    found = []
    for dtype, sizes in _ARRAY.findall(text):
        if dtype in WIDTHS or dtype.startswith("f8"):
            found.append((dtype, tuple(map(int, sizes.split(","))) if sizes else ()))
    return found


def size_of(text: str) -> int:
    """Return the bytes of a type."""
    return int(sum(WIDTHS.get(dtype, 1) * math.prod(shape) for dtype, shape in arrays(text)))


@dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      name, type, op: As in the text.
      operands: Names of instructions.
      rest: The attributes behind the operands.
      is_root: It is what the computation returns.
      number: Of a parameter; None for all else.
    """

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool
    number: int | None

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the result."""
        return size_of(self.type)

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that it runs, or applies to values."""
        keys = "calls|to_apply|body|condition|true_computation|false_computation"
        found = re.findall(rf"\b(?:{keys})=%?([\w.\-$]+)", self.rest)
        for group in re.findall(r"branch_computations=\{([^}]*)\}", self.rest):
            found += re.findall(r"%?([\w.\-$]+)", group)
        return tuple(found)

    def called(self, role: str) -> str:
        """Return the name of the `body` or `condition` of a loop."""
        match = re.search(rf"\b{role}=%?([\w.\-$]+)", self.rest)
        assert match is not None, self.name
        return match[1]

    @property
    def target(self) -> str:
        """What a custom call calls, else ""."""
        match = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return match[1] if match else ""

    @property
    def place(self) -> str:
        """The place in the model that it comes from; layers and steps are all N."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        name = re.sub(r"\bjit\(\w+\)/|\bcall_exported/", "", match[1] if match else "").replace("\\'", "'")
        return re.sub(r"(layers|steps|parts|table|half_norm)([_/])\d+", r"\1\2N", name)


class Program:
    """A module: its computations, and what they move.

    Args:
      text: Of the module: `jax.stages.Compiled.as_text()`, or `jax.stages.Lowered.as_text("hlo")` for its arithmetic.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line and not line[0].isspace():
                if match := _COMPUTATION.match(line):
                    current = self.computations.setdefault(match[2], {})
                    self.entry = match[2] if match[1] else self.entry
            elif match := _INSTRUCTION.match(line):
                current[match[2]] = _parse(match[2], line[match.end() :], bool(match[1]))

    # Structure --------------------------------------------------------------------------------------------------

    def walk(self, computation: str | None = None, times: int = 1) -> Iterator[tuple[str, Instruction, int]]:
        """Yield (computation, instruction, times) of every instruction that runs; all branches of conditionals."""
        computation = self.entry if computation is None else computation
        for instruction in self.computations[computation].values():
            yield computation, instruction, times
            if instruction.op == "while":
                yield from self.walk(instruction.called("body"), times * self.trips(instruction))
            elif instruction.op in NESTED:
                for called in instruction.calls:
                    yield from self.walk(called, times)

    def trips(self, loop: Instruction) -> int:
        """Return the iterations of a loop; 1 where they are not known.

        Before the compiler has found them, they are the constant with which the counter of a `scan` is compared.
        """
        if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(match[1])
        condition = self.computations[loop.called("condition")]
        bounds = [condition.get(name) for name in self._root(loop.called("condition")).operands]
        numbers = [bound.operands[0] for bound in bounds if bound is not None and bound.op == "constant"]
        return int(numbers[0]) if len(numbers) == 1 and numbers[0].isdigit() else 1

    def count(self, op: str) -> int:
        """Count the instructions of a kind that run."""
        return sum(times for _, instruction, times in self.walk() if instruction.op == op)

    def kernels(self) -> int:
        """Count what is launched: every instruction that runs and touches memory."""
        return sum(
            times
            for _, instruction, times in self.walk()
            if instruction.op not in FREE | NESTED and not instruction.op.endswith("-done")
        )

    def calls(self, part: str) -> Counter[str]:
        """Count the custom calls whose target contains `part`."""
        found: Counter[str] = Counter()
        for _, instruction, times in self.walk():
            if part in instruction.target:
                found[instruction.target] += times
        return found

    def collectives(self) -> dict[str, tuple[int, int]]:
        """Return kind -> (times, bytes of the results on one device)."""
        found: dict[str, tuple[int, int]] = {}
        for _, instruction, times in self.walk():
            kind = instruction.op.removesuffix("-start")
            if kind in COLLECTIVES:
                count, size = found.get(kind, (0, 0))
                found[kind] = count + times, size + times * size_of(_result(instruction))
        return found

    def flops(self) -> float:
        """Count the FLOPs of contractions and convolutions, 2 per multiply-add; of attention kernels in its plain form.

        In a module for NVIDIA cards also those that are calls of cuBLAS or inside a fusion; there convolutions of cuDNN
        are not known.
        """
        return sum(times * self._flops(computation, instruction) for computation, instruction, times in self.walk())

    def _flops(self, computation: str, instruction: Instruction) -> float:
        if instruction.op == "fusion":
            inner = instruction.calls[0]
            return sum(self._flops(inner, one) for one in self.computations[inner].values())
        outputs = arrays(instruction.type)[0][1] if instruction.op in ("dot", "convolution", "custom-call") else ()
        if "fmhaSoftmax" in instruction.target:  # [B, H, T, C]; two products forward, five backward
            products = 5 if "Backward" in instruction.target else 2
            return 2.0 * products * math.prod(outputs) * outputs[2]
        if instruction.op not in ("dot", "convolution") and not instruction.target.startswith("__cublas"):
            return 0.0
        left, right = (arrays(self.computations[computation][name].type)[0][1] for name in instruction.operands[:2])
        if instruction.op == "convolution":
            labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
            assert labels is not None, instruction.rest
            depth = math.prod(right) // right[labels[1].index("o")]
        else:
            axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.rest)
            numbers = axes[1].replace('"', "").split(",") if axes else []
            depth = math.prod(left[int(axis)] for axis in numbers if axis)
        return 2.0 * math.prod(outputs) * depth

    # Traffic ----------------------------------------------------------------------------------------------------

    def moved_bytes(self) -> int:
        """Return the bytes that a run of the program reads and writes; of a conditional, its dearest branch."""
        return self._total(self.entry)

    def floor_bytes(self) -> int:
        """Return the bytes that have to be read of the arguments once: of each, the most that one instruction reads."""
        return sum(self._needed(self.entry, name) for name in self._parameters(self.entry).values())

    def moves(self) -> dict[str, tuple[int, int]]:
        """Return description -> (times, bytes) of the instructions that only move values or change their type."""
        found: dict[str, tuple[int, int]] = {}
        for computation, instruction, times in self.walk():
            kind = self._move(instruction)
            if kind is None:
                continue
            sources = [self._argument(computation, name) for name in instruction.operands]
            of = next((f"of argument {p.place or p.name}" for p in sources if p is not None), f"in {instruction.place}")
            name = f"{kind} {instruction.type.split('{')[0]} {of}"
            count, size = found.get(name, (0, 0))
            found[name] = count + times, size + times * self._moved(computation, instruction)
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def traffic(self) -> dict[str, int]:
        """Return kind of instruction -> bytes that they read and write, of a program for NVIDIA cards.

        The kinds are "products", "attention", "collectives", "copies" (what `moves` names) and "others".
        """
        found = dict.fromkeys(("products", "attention", "collectives", "copies", "others"), 0)
        for computation, instruction, times in self.walk():
            if instruction.op not in FREE | NESTED:
                found[self._kind(computation, instruction)] += times * self._moved(computation, instruction)
        return found

    def _kind(self, computation: str, instruction: Instruction) -> str:
        if "fmha" in instruction.target:
            return "attention"
        if instruction.op.removesuffix("-start") in COLLECTIVES:
            return "collectives"
        if self._flops(computation, instruction):
            return "products"
        return "copies" if self._move(instruction) else "others"

    def _total(self, computation: str) -> int:
        return sum(self._moved(computation, instruction) for instruction in self.computations[computation].values())

    def _moved(self, computation: str, instruction: Instruction) -> int:
        op, here = instruction.op, self.computations[computation]
        if op in FREE or op.endswith("-done"):
            return 0
        if op == "while":
            return self.trips(instruction) * self._total(instruction.called("body"))
        if op == "conditional":
            return max(map(self._total, instruction.calls), default=0)
        if op in ("call", "async-start"):
            return sum(map(self._total, instruction.calls))
        if op == "fusion":
            inner = instruction.calls[0]
            read = sum(self._read(inner, name) for name in self._parameters(inner).values())
            return read + self._written(inner)
        if op == "dynamic-update-slice":
            return 2 * here[instruction.operands[1]].size
        if op == "scatter":
            return 2 * here[instruction.operands[-1]].size
        if op in _PICKS:
            return 2 * instruction.size
        read = sum(here[name].size for name in set(instruction.operands) if name in here)
        written = size_of(_result(instruction))
        if op == "custom-call" and (parts := arrays(instruction.type))[1:] and parts[-1][0] in ("s8", "u8"):
            written -= math.prod(parts[-1][1])  # work space
        return read + written

    def _read(self, computation: str, name: str) -> int:
        """Return the bytes that a fused computation reads of its value `name`."""
        size, total = self.computations[computation][name].size, 0
        for user in self._users(computation)[name]:
            if user.op in ("bitcast", "get-tuple-element", "reshape"):
                total += self._read(computation, user.name)
            elif user.op in _PICKS and user.operands[0] == name:
                total += user.size
            elif user.op in _UPDATES and user.operands[0] == name:
                pass  # in place
            elif user.op == "fusion":
                total += sum(self._read(user.calls[0], inner) for inner in self._inside(user, name))
            else:
                return size
        return min(total, size)

    def _written(self, computation: str) -> int:
        """Return the bytes that a fused computation writes: an update in place writes the update alone."""
        here = self.computations[computation]

        def one(instruction: Instruction) -> int:
            update = instruction
            while update.op in _RENAMES and update.operands[0] in here:
                update = here[update.operands[0]]
            if update.op in _UPDATES:
                return here[update.operands[1 if update.op == "dynamic-update-slice" else -1]].size
            return instruction.size

        root = self._root(computation)
        return sum(one(here[name]) for name in root.operands) if root.op == "tuple" else one(root)

    def _needed(self, computation: str, name: str) -> int:
        """Return the most that one instruction reads of a value, under other names and after updates in place too."""
        size, most = self.computations[computation][name].size, 0
        for user in self._users(computation)[name]:
            if user.op in ("bitcast", "get-tuple-element", "copy") or self._updates(user, name):
                most = max(most, self._needed(computation, user.name))
            if user.op in ("bitcast", "get-tuple-element", "tuple", "copy"):
                continue
            if user.op in ("fusion", "call"):
                read = self._read if user.op == "fusion" else self._needed
                most = max([most, *(read(user.calls[0], inner) for inner in self._inside(user, name))])
            elif user.op == "conditional":
                branches = [called for called, given in zip(user.calls, user.operands[1:]) if given == name]
                most = max([most, *(self._needed(called, self._parameters(called)[0]) for called in branches)])
            elif user.op in _PICKS and user.operands[0] == name:
                most = max(most, user.size)
            elif user.op not in _UPDATES:
                return size
        return min(most, size)

    def _updates(self, user: Instruction, name: str) -> bool:
        """Return whether an instruction updates `name` in place: a scatter or an update of a slice, fused or not."""
        if user.op in _UPDATES:
            return user.operands[0] == name
        if user.op != "fusion":
            return False
        here, found = self.computations[user.calls[0]], self._root(user.calls[0])
        while found.op in ("bitcast", "reshape"):
            found = here[found.operands[0]]
        if found.op not in _UPDATES:
            return False
        source = here[found.operands[0]]
        while source.op in ("bitcast", "reshape"):
            source = here[source.operands[0]]
        return source.number is not None and user.operands[source.number] == name

    def _move(self, instruction: Instruction) -> str | None:
        if instruction.op in ("copy", "transpose", "concatenate", "convert", "copy-start"):
            return instruction.op.removesuffix("-start")
        if instruction.op != "fusion":
            return None
        inside = self.computations[instruction.calls[0]].values()
        ops = {i.op for i in inside} - FREE - {"reshape", "broadcast"}
        return "+".join(sorted(ops)) if ops and ops <= _MOVES and ops - _PICKS else None

    def _argument(self, computation: str, name: str) -> Instruction | None:
        """Return the argument of the program that a value is, whatever it is called; None if it was computed."""
        found = self.computations[computation].get(name)
        while found is not None and found.op in ("bitcast", "copy") and found.operands:
            found = self.computations[computation].get(found.operands[0])
        return found if found is not None and found.op == "parameter" and computation == self.entry else None

    def _parameters(self, computation: str) -> dict[int, str]:
        return {i.number: i.name for i in self.computations[computation].values() if i.number is not None}

    def _inside(self, user: Instruction, name: str) -> list[str]:
        """Return the names that the computation of a fusion or call has for an operand."""
        parameters = self._parameters(user.calls[0])
        return [parameters[number] for number, operand in enumerate(user.operands) if operand == name]

    def _root(self, computation: str) -> Instruction:
        return next(i for i in self.computations[computation].values() if i.is_root)

    @functools.cache  # noqa: B019 (a program lives as long as its report takes)
    def _users(self, computation: str) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = defaultdict(list)
        for instruction in self.computations[computation].values():
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return found


def _parse(name: str, text: str, is_root: bool) -> Instruction:
    """Parse what stands behind `name = `: type, op, operands in brackets, attributes."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
    type_, text = text[:end], text[end:].lstrip()
    opened = text.find("(")
    closed = _closing(text, opened)
    inside, op = text[opened + 1 : closed], text[:opened]
    number = int(inside) if op == "parameter" else None
    # Operands are names with % in optimised modules, and without it in others.
    operands = re.findall(r"%([\w.\-$]+)", inside) if "%" in inside else re.findall(r"[\w.\-$]+", inside)
    return Instruction(name, type_, op, tuple(operands), text[closed + 1 :], is_root, number)


def _closing(text: str, start: int) -> int:
    """Return where the bracket that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
    return len(text)


def _result(instruction: Instruction) -> str:
    """Return the type of what an instruction gives; of asynchronous starts with operands in it, the second part."""
    text = instruction.type
    if not instruction.op.endswith("-start") or not text.startswith("(") or instruction.op == "all-reduce-start":
        return text
    parts, depth, begin = [], 0, 1
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return parts[1] if len(parts) > 1 else text
