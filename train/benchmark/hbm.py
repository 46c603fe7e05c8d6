"""Counts the bytes that each instruction of a compiled program reads from the device's main memory, and writes to it.

An array counts as it is stored: padded to the tiles of its layout, and not at all in another memory space, such as
TPU's on-chip vector memory. A fusion reads its operands and writes its result; within it nothing is stored. Where it
takes a slice of an operand, or writes a slice of its result in place, the slice counts. An asynchronous copy counts
once, at its start. What stays on the chip between instructions without the layout saying so is counted, as is a read
that the chip serves from a buffer: the counts describe the program, not a measurement.
"""

import dataclasses
import re
from collections.abc import Iterator

from .hlo import Computation, Frame, Instruction, Module, stored_bytes, type_bytes

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "add-dependency"),
    *("partition-id", "replica-id", "domain", "get-dimension-size"),
}
"""Opcodes that give a name to what is stored already."""

_CALLS = {"while", "conditional", "call", "async-start"}
"""Opcodes whose computations run as if they stood in their place."""

_MOVES = {
    *("copy", "transpose", "reshape", "broadcast", "slice", "pad", "concatenate", "reverse", "iota"),
    *("dynamic-slice", "dynamic-update-slice"),
}
"""Opcodes that move numbers and compute none."""

_TRANSFERS = {"copy-start", "slice-start"}
"""Asynchronous copies. Those within HBM are moves. Those between HBM and the chip are none: another instruction reads
what they bring, or has computed what they take away."""


@dataclasses.dataclass(frozen=True)
class Access:
    """The main memory that one instruction uses, in all its runs.

    Attributes:
        instruction: the instruction.
        stack: the Python calls that wrote it, the innermost first; empty where neither it nor a neighbor has them.
        op_name: JAX's name of the operation, with the transformations that made it: "jit(f)/transpose(jvp())/mul".
        moves: it copies, transposes, slices or pads, and computes nothing, nor brings anything onto the chip.
        read: bytes.
        written: bytes.
        padding: bytes of both that fill up tiles.
    """

    instruction: Instruction
    stack: tuple[Frame, ...]
    op_name: str
    moves: bool
    read: int
    written: int
    padding: int


def read_accesses(module: Module) -> Iterator[Access]:
    """Yields the accesses of a program's instructions.

    Loops count as often as they run, or once where that depends on data. A conditional's branches all count.
    """
    yield from _visit(module, module.entry, 1)


def _visit(module: Module, name: str, times: int) -> Iterator[Access]:
    computation = module.computations[name]
    origins = _Origins(module, computation)
    for instruction in computation.values():
        opcode = instruction.opcode
        if opcode in _CALLS:
            trips = module.trip_count(instruction, computation) if opcode == "while" else 1
            # Of a loop the body alone: its condition moves next to nothing.
            body = re.findall(r"\bbody=%?([\w.\-]+)", instruction.attributes)
            for callee in body or instruction.callees:
                yield from _visit(module, callee, times * (1 if trips is None else trips))
        elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            reads, writes = _types(module, computation, instruction)
            read, written = (times * sum(map(stored_bytes, types)) for types in (reads, writes))
            if read or written:
                # Of the arrays in main memory alone: those elsewhere have no stored bytes.
                needed = times * sum(type_bytes(part) for part in (*reads, *writes) if stored_bytes(part))
                # What only reads brings an array onto the chip for the one that uses it.
                stack, op_name = origins.find(instruction, by_use=opcode.endswith("-start") and not written)
                is_move = _only_moves(module, instruction) or (opcode in _TRANSFERS and bool(read and written))
                yield Access(instruction, stack, op_name, is_move, read, written, read + written - needed)


def _types(module: Module, computation: Computation, instruction: Instruction) -> tuple[list[str], list[str]]:
    """The types of the arrays that an instruction reads and writes, those of slices where it needs no more."""
    types = {name: computation[name].type for name in instruction.operands if name in computation}
    results = _leaves(instruction.type)
    opcode = instruction.opcode
    if opcode == "fusion":
        fused = module.computations[next(instruction.callees)]
        reads = _fusion_reads(module, fused, [types[name] for name in instruction.operands if name in types])
        return reads, _fusion_writes(module, fused, results)
    operands = [*types.values()]  # an operand that stands twice is read once
    if opcode in ("slice", "dynamic-slice", "gather"):
        reads = [_in_space_of(results[0], operands[0]), *operands[1:]]
        return reads, results
    if opcode == "dynamic-update-slice":
        return operands[1:], [_in_space_of(operands[1], results[0])]
    if opcode == "copy-start":  # (result, operand, semaphore)
        return operands, results[:1]
    if opcode == "slice-start":  # ((operand), result, semaphore)
        return [_in_space_of(results[1], operands[0])], results[1:2]
    if opcode in ("all-gather-start", "collective-permute-start"):  # (operand, result, ...)
        return operands, results[len(operands) : 2 * len(operands)]
    if opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return [], []
    return [part for type_ in operands for part in _leaves(type_)], results


def _fusion_reads(module: Module, fused: Computation, operands: list[str]) -> list[str]:
    """The types of what a fusion reads of its operands."""
    parameters = sorted((int(line.arguments), line.name) for line in fused.values() if line.opcode == "parameter")
    reads = []
    for (_, parameter), type_ in zip(parameters, operands, strict=True):
        parts = _parts_used(module, fused, parameter)
        reads += _leaves(type_) if parts is None else [_in_space_of(part, type_) for part in parts]
    return reads


def _parts_used(module: Module, fused: Computation, name: str) -> list[str] | None:
    """The types of the slices that a fused computation takes of one array; None: all of it is used."""
    parts: list[str] = []
    for user in fused.values():
        if name not in user.operands:
            continue
        is_first = user.operands.index(name) == 0
        found: list[str] | None
        if user.opcode == "bitcast" and not user.is_root:
            found = _parts_used(module, fused, user.name)
        elif user.opcode in ("slice", "dynamic-slice", "gather") and is_first:
            found = [user.type]
        elif user.opcode == "dynamic-update-slice" and is_first and user.operands.count(name) == 1:
            found = []  # written in place
        elif user.opcode == "fusion":
            inner = module.computations[next(user.callees)]
            position = user.operands.index(name)
            inside = next(p for p in inner.values() if p.opcode == "parameter" and int(p.arguments) == position)
            found = _parts_used(module, inner, inside.name)
        else:
            found = None
        if found is None:
            return None
        parts += found
    return parts


def _fusion_writes(module: Module, fused: Computation, results: list[str]) -> list[str]:
    """The types of what a fusion writes of its results."""
    root = next(instruction for instruction in fused.values() if instruction.is_root)
    if root.opcode == "tuple":
        sources = [fused[name] for name in root.operands]
        if len(sources) == len(results):
            return [_written(module, fused, source, type_) for source, type_ in zip(sources, results, strict=True)]
        return results
    if root.opcode == "fusion":
        return _fusion_writes(module, module.computations[next(root.callees)], results)
    return [_written(module, fused, root, results[0])] if len(results) == 1 else results


def _written(module: Module, fused: Computation, source: Instruction, type_: str) -> str:
    while source.opcode == "bitcast":
        source = fused[source.operands[0]]
    if source.opcode == "fusion" and not source.type.startswith("("):
        return _fusion_writes(module, module.computations[next(source.callees)], [type_])[0]
    if source.opcode == "dynamic-update-slice":
        return _in_space_of(fused[source.operands[1]].type, type_)
    return type_


def _leaves(type_: str) -> list[str]:
    """The array types in a type, which may be a nested tuple."""
    return re.findall(r"\b\w+\[[\d,]*\](?:\{[^}]*\})?", type_)


def _in_space_of(part: str, whole: str) -> str:
    """The type of a part of an array, in the memory space of the array."""
    space = re.search(r"S\(\d+\)", whole)
    part = re.sub(r"S\(\d+\)", "", part)
    if not space:
        return part
    return f"{part[:-1]}{space[0]}}}" if part.endswith("}") else f"{part}{{{space[0]}}}"


def _only_moves(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode != "fusion":
        return instruction.opcode in _MOVES
    fused = module.computations[next(instruction.callees)].values()
    return all(inner.opcode in _FREE or _only_moves(module, inner) for inner in fused)


class _Origins:
    """Finds the Python calls behind the instructions of a computation.

    The compiler's own instructions, its copies above all, have none. They take those of what they copy, or else those
    of the first instruction that uses them; transfers onto the chip take these first.
    """

    def __init__(self, module: Module, computation: Computation) -> None:
        self._module = module
        self._computation = computation
        self._users: dict[str, list[str]] = {}
        for instruction in computation.values():
            for name in instruction.operands:
                self._users.setdefault(name, []).append(instruction.name)

    def find(self, instruction: Instruction, *, by_use: bool) -> tuple[tuple[Frame, ...], str]:
        steps = (self._operands, self._first_users)
        for step in reversed(steps) if by_use else steps:
            current: Instruction | None = instruction
            for _ in range(20):  # a chain of copies is short
                if current is None:
                    break
                if stack := self._module.stack(current):
                    name = re.search(r'op_name="([^"]*)"', current.attributes)
                    return stack, name[1] if name else ""
                current = step(current)
        return (), ""

    def _operands(self, instruction: Instruction) -> Instruction | None:
        known = [self._computation[name] for name in instruction.operands if name in self._computation]
        return known[0] if known else None

    def _first_users(self, instruction: Instruction) -> Instruction | None:
        users = self._users.get(instruction.name)
        return self._computation[users[0]] if users else None
