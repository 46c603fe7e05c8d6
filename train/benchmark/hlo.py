"""Reads the text of XLA's compiled programs (HLO modules) as far as counting instructions needs it."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple


class Frame(NamedTuple):
    """A call in the Python program that wrote an instruction: its file's path, and the function's qualified name."""

    file: str
    function: str


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in its computation.
        opcode: such as "all-reduce".
        type: of the result, such as "f32[8,4]{1,0}"; a tuple's in parentheses.
        arguments: the text in the opcode's parentheses: names of instructions, or the value of a constant.
        attributes: the rest of the line.
        is_root: True if it is the computation's result.
    """

    name: str
    opcode: str
    type: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def callees(self) -> Iterator[str]:
        """Names of the computations that it calls."""
        yield from re.findall(r"\b(?:calls|to_apply|body|condition|\w+_computation)=%?([\w.\-]+)", self.attributes)
        for names in re.findall(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes):
            yield from re.findall(r"[\w.\-]+", names)


Computation = dict[str, Instruction]
"""Instructions by name."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
        computations: by name.
        entry: name of the one that runs.
        partitions: chips of an SPMD program; its shapes are those of one chip's parts.
        frames: by number, as instructions name them (`stack_frame_id`): the stack, the innermost call first.
    """

    computations: dict[str, Computation]
    entry: str
    partitions: int
    frames: dict[int, tuple[Frame, ...]] = dataclasses.field(default_factory=dict)

    def stack(self, instruction: Instruction) -> tuple[Frame, ...]:
        """The calls that wrote the instruction, the innermost first; empty where the compiler names none."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
        return self.frames.get(int(found[1]), ()) if found else ()

    def trip_count(self, loop: Instruction, caller: Computation) -> int | None:
        """The number of times that a `while` runs its body; None where that depends on data.

        Backends that know it write it down. TPU's does not, but leaves the form of `lax.scan`: a counter that starts at
        a constant, grows by 1, and runs while it is less than a constant.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        names = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", loop.attributes)
        assert names, f"a loop without condition and body: {loop}"
        condition, body = self.computations[names[1]], self.computations[names[2]]
        test, result, start = _root(condition), _root(body), caller[loop.operands[0]]
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        counter, limit = (_source(condition, name) for name in test.operands)
        index = re.search(r"index=(\d+)", counter.attributes)
        if counter.opcode != "get-tuple-element" or not index or result.opcode != "tuple" or start.opcode != "tuple":
            return None
        first = _source(caller, start.operands[int(index[1])])
        step = _source(body, result.operands[int(index[1])])
        values = [_integer(limit), _integer(first)]
        one = [_integer(_source(body, name)) for name in step.operands if step.opcode == "add"]
        if None in values or one.count(1) != 1:
            return None
        return max(0, values[0] - values[1])  # type: ignore[operator]


def parse(text: str) -> Module:
    """Reads what `compiled.as_text()` returns.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, body = "", Computation()
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
            body = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif instruction := _parse_line(line):
            body[instruction.name] = instruction
    if not entry:
        raise ValueError("no HLO module: it has no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text)
    return Module(computations, entry, int(partitions[1]) if partitions else 1, _frames(text))


def type_bytes(type_: str) -> int:
    """The bytes of an HLO type, or of all parts of a tuple, without the padding of its layout."""
    total = 0
    for bits, sizes in re.findall(r"\b(?:[a-z]+(\d+)\w*|pred)\[([\d,]*)\]", type_):
        total += math.prod(int(size) for size in sizes.split(",") if size) * int(bits or 8) // 8
    return total


def stored_bytes(type_: str) -> int:
    """The bytes of an HLO type, or of all parts of a tuple, in the device's main memory.

    They include the padding of the layout's tiles: bf16[4,64]{1,0:T(8,128)} is stored as 8 rows of 128. A part in
    another memory space, S(1) and up, takes none: S(1) is TPU's on-chip vector memory.
    """
    total = 0
    for bits, sizes, layout in re.findall(r"\b(?:[a-z]+(\d+)\w*|pred)\[([\d,]*)\](?:\{([^}]*)\})?", type_):
        if not re.search(r"S\([1-9]", layout):
            total += _padded([int(size) for size in sizes.split(",") if size], layout) * int(bits or 8) // 8
    return total


def _padded(sizes: list[int], layout: str) -> int:
    """The numbers in an array, with the padding of a layout of axes, minor to major, and tiles: "1,0:T(8,128)(2,1)"."""
    order, _, rest = layout.partition(":")
    minor_to_major = [int(axis) for axis in order.split(",") if axis]
    sizes = [sizes[axis] for axis in reversed(minor_to_major)] if minor_to_major else sizes
    tiles = re.search(r"T((?:\([\d,]+\))+)", rest)
    for tile in re.findall(r"\(([\d,]+)\)", tiles[1]) if tiles and 0 not in sizes else ():
        sides = [int(side) for side in tile.split(",")]
        sizes = [1] * (len(sides) - len(sizes)) + sizes  # a tile of more axes than the array
        outer, inner = sizes[: -len(sides)], sizes[-len(sides) :]
        sizes = [*outer, *(-(-size // side) for size, side in zip(inner, sides, strict=True)), *sides]
    return math.prod(sizes)


def _frames(text: str) -> dict[int, tuple[Frame, ...]]:
    """Reads the tables of Python calls at the head of a module; empty without them."""
    files, functions = (
        {int(number): name for number, name in re.findall(r'^(\d+) "(.*)"$', _table(text, title), re.MULTILINE)}
        for title in ("FileNames", "FunctionNames")
    )
    place = r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+)"
    calls = {
        int(number): Frame(files[int(file)], functions[int(function)])
        for number, file, function in re.findall(place, _table(text, "FileLocations"), re.MULTILINE)
    }
    frame = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
    rows = re.findall(frame, _table(text, "StackFrames"), re.MULTILINE)
    # XLA at jaxlib 0.10.2 writes a caller's number plus one; the outermost frame, without a caller, seems its own.
    excess = int(any(number == parent for number, _, parent in rows))
    stacks: dict[int, tuple[Frame, ...]] = {0: ()}
    for number, call, parent in rows:  # callers stand before those they call
        stacks[int(number)] = (calls[int(call)], *stacks[int(parent or 0) - excess])
    return stacks


def _table(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    return found[1] if found else ""


def _parse_line(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    start = head.end()
    type_end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = re.compile(r" ([\w\-]+)\(").match(line, type_end)
    if not opcode:
        return None
    end = _closing(line, opcode.end() - 1)
    return Instruction(
        head[2], opcode[1], line[start:type_end], line[opcode.end() : end - 1], line[end:], is_root=bool(head[1])
    )


def _closing(text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.end()
    return len(text)


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction behind a chain of copies."""
    while computation[name].opcode in ("copy", "bitcast"):
        name = computation[name].operands[0]
    return computation[name]


def _integer(instruction: Instruction) -> int | None:
    is_integer = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments)
    return int(instruction.arguments) if is_integer else None
