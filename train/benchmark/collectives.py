"""The traffic between the chips that run a compiled program."""

import dataclasses
import math
import re
from collections.abc import Mapping

from .hlo import Computation, Instruction, Module, parse, type_bytes

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives that one run of a program executes.

    Attributes:
        count: how many; an asynchronous one counts once, one in a loop as often as the loop runs.
        payload_bytes: of the arrays that they reduce, gather or exchange, whole: an all-gather's is its result.
        sent_bytes: that each chip sends at the least, as rings do.
    """

    count: int = 0
    payload_bytes: float = 0
    sent_bytes: float = 0

    def __add__(self, other: "Collectives") -> "Collectives":
        return Collectives(
            self.count + other.count, self.payload_bytes + other.payload_bytes, self.sent_bytes + other.sent_bytes
        )

    def __mul__(self, times: int) -> "Collectives":
        return Collectives(self.count * times, self.payload_bytes * times, self.sent_bytes * times)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of a program.

    Attributes:
        kinds: by kind; only those that occur.
        in_open_loops: collectives in loops whose length depends on data; each is counted once.
    """

    kinds: Mapping[str, Collectives]
    in_open_loops: int

    @property
    def total(self) -> Collectives:
        """Of all kinds."""
        return sum(self.kinds.values(), Collectives())


def read_traffic(text: str) -> Traffic:
    """Counts the collectives in the text of a compiled SPMD program (`compiled.as_text()`).

    A conditional's branches are all counted, though one of them runs.

    Raises:
        ValueError: the text is not that of an HLO module.
    """
    module = parse(text)
    kinds: dict[str, Collectives] = {}
    chains: set[str] = set()
    in_open_loops = 0

    def visit(name: str, times: int, *, is_open: bool) -> None:
        nonlocal in_open_loops
        computation = module.computations[name]
        for instruction in computation.values():
            if kind := _kind(instruction, name):
                if chain := _chain(instruction):
                    if chain in chains:
                        continue
                    chains.add(chain)
                kinds[kind] = kinds.get(kind, Collectives()) + _measure(kind, instruction, computation, module) * times
                in_open_loops += is_open
            elif instruction.opcode not in ("async-update", "async-done"):  # these name the start's callees again
                trips = module.trip_count(instruction, computation) if instruction.opcode == "while" else 1
                for callee in instruction.callees:
                    visit(callee, times * (1 if trips is None else trips), is_open=is_open or trips is None)

    visit(module.entry, 1, is_open=False)
    return Traffic(dict(sorted(kinds.items())), in_open_loops)


def _kind(instruction: Instruction, computation: str) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter"  # TPU's is a fusion that is written as an all-reduce and a slice
    return kind if kind in KINDS else None


def _chain(instruction: Instruction) -> str:
    """Returns the name that fusions share if TPU's compiler spreads one collective over them, to overlap their work.

    Each of them, from the collective's start to its end, holds the whole collective. Empty for any other collective.
    """
    chain = re.search(r'chain_id="\d+"', instruction.attributes)
    channel = re.search(r"channel_id=\d+", instruction.attributes)
    return f"{channel[0]} {chain[0]}" if chain and channel else ""


def _measure(kind: str, instruction: Instruction, computation: Computation, module: Module) -> Collectives:
    payload = sum(type_bytes(computation[name].type) for name in instruction.operands)
    if kind.startswith("collective-"):
        return Collectives(1, payload, payload)
    group = _group_size(instruction.attributes, module.partitions)
    if kind == "all-gather":
        payload *= group
    phases = 2 if kind == "all-reduce" else 1  # an all-reduce is a reduce-scatter and an all-gather
    return Collectives(1, payload, phases * payload * (group - 1) / group)


def _group_size(attributes: str, partitions: int) -> int:
    """Chips that take part in one collective together; `replica_groups` is written in three ways."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):  # {{0,1},{2,3}}
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[[\d,]*?(\d+)\]<=", attributes):  # [groups,size]<=[4]
        return int(iota[1])
    # mesh['a'=2,'b'=4], ... {'b'}: the axes that are reduced over; 'b':(1)2 is the first part of size 2 of one.
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return partitions
