"""Decodes damaged image files: `python tests/scripts/fuzz_images.py [--count 10000] [--seed 0]`.

Small files of every format and mode are changed: bits, lengths, header fields, chunks, tags, parts of others, and files
of formats that must not be decoded. `decode` runs on them in child processes with little memory; it must return an
image or raise InputError, in one line, and must not start a program, connect, or write a file. Prints the counts as one
line of JSON. Exit code 1: some broke the rule; they are named, and written into the working folder.
"""
# ruff: noqa: T201 - a script

import argparse
import faulthandler
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from tests.scripts.peak_memory import peak
from tests.support.images import chunk, of_all_kinds, picture, saved
from train.data.decode import decode
from twins_jax.errors import InputError

MEMORY = 2**30
"""Bytes that a child may take beyond its imports: three times an image of the largest size."""

SECONDS = 60
"""Time for one file, after which the child ends."""

NUMBERS = (0, 1, 2, 8, 255, 2**15 - 1, 2**16 - 1, 2**24 - 1, 2**31 - 1, 2**32 - 1)

FOREIGN = (
    "EPS",
    "PDF",
    "ICO",
    "ICNS",
    "SGI",
    "TGA",
    "PCX",
    "IM",
    "MSP",
    "SPIDER",
    "DDS",
    "JPEG2000",
    "AVIF",
    "QOI",
    "XBM",
)
"""PIL's formats that it writes and `decode` must not read."""

STARTS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xc5\xd0\xd3\xc6", b"%PDF-1.7\n", b"<svg ", b"8BPS\0\1",
    b"\xd7\xcd\xc6\x9a\0\0", b"\1\0\0\0", b"\x0e\x03\x13\x01", b"GRIB", b"BUFR", b"\x89HDF\r\n\x1a\n", b"SIMPLE  =",
    b"FLC", b"\xb1h\xde:", b"FTEX", b"BLP2", b"gd2\0", b"\0\0\1\xba", b"\x1f\x8b\x08", b"PK\3\4", b"#!/bin/sh\n",
)  # fmt: skip
"""First bytes of PostScript and others, for which PIL or a viewer may start programs."""


def foreign() -> list[bytes]:
    """Makes files of formats that are not decoded."""
    files = [start + bytes(range(256)) for start in STARTS]
    for file_format in FOREIGN:
        image = picture(32, 32)
        for mode in ("RGB", "L", "1", "F"):
            try:
                files.append(saved(image.convert(mode), file_format))
            except (OSError, ValueError, KeyError):
                continue
            break
    return files


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 30))]


def insert(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = rng.choice((rng.randbytes(rng.choice((1, 4, 40))), data[: rng.randrange(len(data)) + 1]))


def number(data: bytearray, rng: random.Random) -> None:
    """Writes an extreme number where one may stand, mostly in the header."""
    kind = rng.choice(("<H", ">H", "<I", ">I"))
    limit = min(len(data), rng.choice((32, 200, len(data))))
    value = rng.choice(NUMBERS) % (1 << 8 * struct.calcsize(kind))
    for _ in range(rng.choice((1, 2))):
        start = rng.randrange(limit)
        data[start : start + struct.calcsize(kind)] = struct.pack(kind, value)


def fields(data: bytearray, rng: random.Random) -> None:
    """Changes a part of the format's structure and leaves the rest valid."""
    if data.startswith(b"\x89PNG"):
        _png_chunk(data, rng)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        _tiff_tag(data, rng)
    elif data.startswith(b"\xff\xd8"):
        _jpeg_segment(data, rng)
    else:
        number(data, rng)


def _png_chunk(data: bytearray, rng: random.Random) -> None:
    chunks, start = [], 8
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        chunks.append((bytes(data[start + 4 : start + 8]), bytearray(data[start + 8 : start + 8 + length])))
        start += 12 + length
    index = rng.randrange(len(chunks))
    body = chunks[index][1]
    action = rng.randrange(5)
    if action == 0 and body:
        number(body, rng)
    elif action == 1 and body:
        flip(body, rng)
    elif action == 2:
        chunks.insert(index, rng.choice(chunks))
    elif action == 3:
        del chunks[index]
    else:
        bomb = zlib.compress(bytes(2**22))
        new = (b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"IDAT", bomb), (b"tRNS", rng.randbytes(9))
        chunks.insert(index, rng.choice(new))
    data[8:] = b"".join(chunk(kind, bytes(body)) for kind, body in chunks)


def _tiff_tag(data: bytearray, rng: random.Random) -> None:
    order = "<" if data[:1] == b"I" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    place = start + 2 + 12 * rng.randrange(count)
    tag, kind, length, value = struct.unpack_from(order + "HHII", data, place)
    tags = (
        256,
        257,
        258,
        259,
        262,
        266,
        273,
        274,
        277,
        278,
        279,
        284,
        317,
        322,
        323,
        324,
        325,
        330,
        338,
        339,
        347,
        530,
        34665,
    )
    tag = rng.choice((tag, tag, tag, rng.choice(tags)))
    kind = rng.choice((kind, kind, kind, rng.randrange(20)))
    length = rng.choice((length, length, length, rng.choice(NUMBERS)))
    value = rng.choice((value, rng.choice(NUMBERS), rng.randrange(9), rng.randrange(len(data))))
    struct.pack_into(order + "HHII", data, place, tag, kind, length, value)


def _jpeg_segment(data: bytearray, rng: random.Random) -> None:
    markers, start = [], 2
    while start + 4 <= len(data) and data[start] == 0xFF and data[start + 1] != 0xDA:
        markers.append(start)
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    start = rng.choice(markers or [2])
    action = rng.randrange(4)
    if action == 0:
        data[start + 1] = rng.choice((*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE1, 0xE2, 0xEE, 0xFE))
    elif action == 1:
        struct.pack_into(">H", data, start + 4 + rng.randrange(6), rng.choice(NUMBERS) % 2**16)
    elif action == 2:
        body = rng.choice(
            (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"MPF\0II*\0\x08\0\0\0\x03\0", b"Adobe\0\x64\0\0\0\0\x02")
        )
        body += rng.randbytes(60)
        data[start:start] = b"\xff" + rng.choice((b"\xe1", b"\xe2", b"\xee")) + struct.pack(">H", len(body) + 2) + body
    else:
        data[start:start] = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (flip, cut, remove, insert, number, fields, fields)


def mutated(index: int, seed: int, valid: list[bytes], others: list[bytes]) -> bytes:
    """Makes file number `index` of those of a seed."""
    rng = random.Random(f"{seed} {index}")
    data = bytearray(rng.choice(others if index % 10 == 0 else valid))
    if index % 10 == 1:  # the start of one file and the rest of another
        place = rng.randrange(len(data))
        data[place:] = rng.choice((*valid, *others))[place:]
    if index % 20:
        for _ in range(rng.choice((1, 1, 2, 3))):
            if data:
                try:
                    rng.choice(MUTATIONS)(data, rng)
                except (struct.error, IndexError, ValueError):  # an earlier change has left no structure to change
                    flip(data, rng)
    return bytes(data)


FORBIDDEN = (
    "subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "pty.", "socket.", "ctypes.",
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
)  # fmt: skip
"""Audit events that decoding must not raise."""

IN_WORK = b"?"
"""Written into the progress file before a file is decoded; its outcome's first letter replaces it."""


def child(seed: int, start: int, stop: int, progress: Path) -> None:
    """Decodes the files `start` to `stop` of a seed, and writes a letter for each into the progress file."""
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    valid, others = list(of_all_kinds().values()), foreign()
    file = os.open(progress, os.O_RDWR)
    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    before = peak()
    seen: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes or event.startswith(FORBIDDEN):
            seen.append(event)

    sys.addaudithook(audit)
    for index in range(start, stop):
        data = mutated(index, seed, valid, others)
        os.pwrite(file, IN_WORK, index)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        outcome = attempt(data)
        faulthandler.cancel_dump_traceback_later()
        if seen:
            outcome = f"wrong: {', '.join(seen)}"
            seen.clear()
        if outcome.startswith("wrong"):
            print(json.dumps([index, outcome]), flush=True)
        os.pwrite(file, outcome[0].encode(), index)
    print(json.dumps(["peak_mib", round((peak() - before) / 2**20)]))


def attempt(data: bytes) -> str:
    """Decodes a file; returns "image", "refused" or "wrong: WHY"."""
    try:
        pixels = decode(data, "some/file")
    except InputError as error:
        message = str(error)
        right = message.startswith("some/file: ") and "\n" not in message and "object at 0x" not in message
        return "refused" if right else f"wrong: message {message!r}"
    except BaseException as error:
        return f"wrong: {type(error).__name__}: {error}"
    right = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size > 0
    return "image" if right else f"wrong: {pixels.dtype} {pixels.shape}"


def fuzz(count: int, seed: int) -> dict[str, Any]:
    """Decodes `count` files; returns the counts of outcomes, and the files whose outcome is wrong, by number."""
    began = time.monotonic()
    found: dict[Any, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        progress = Path(folder) / "progress"
        progress.touch()
        start = 0
        while start < count:
            command = [sys.executable, __file__, "--seed", str(seed), "--child", str(start), str(count), str(progress)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            found |= dict(map(json.loads, ended.stdout.splitlines()))
            index = len(progress.read_bytes()) - 1
            if index < start:
                raise RuntimeError(f"a child does not start: {ended.stderr}")
            if ended.returncode != 0:
                found[index] = f"wrong: the child ended with code {ended.returncode}: {ended.stderr[-500:]}"
            start = index + 1
        outcomes = progress.read_bytes()
    return {
        "count": count,
        "seed": seed,
        **{name: outcomes.count(name[0].encode()) for name in ("image", "refused", "wrong")},
        "crashed": outcomes.count(IN_WORK),
        "peak_mib": found.pop("peak_mib", 0),
        "seconds": round(time.monotonic() - began, 1),
        "failures": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        start, stop, progress = args.child
        child(args.seed, int(start), int(stop), Path(progress))
        return 0
    result = fuzz(args.count, args.seed)
    print(json.dumps(result))
    valid, others = list(of_all_kinds().values()), foreign()
    for index in result["failures"]:
        Path(f"fuzz-{args.seed}-{index}.bin").write_bytes(mutated(index, args.seed, valid, others))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
