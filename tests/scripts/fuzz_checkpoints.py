"""Reads damaged and hostile checkpoints of every format in a process that sees what else happens.

python tests/scripts/fuzz_checkpoints.py [--count 10000] [--seed 0]

A child process makes variants of small valid files and reads each as `port_weights.py` does. Only success and
`InputError` are allowed. A hook of Python's lists programs started, modules imported, code compiled, sockets and files
opened for writing while a file is read; the address space is limited to what the child has at the start and 1 GiB. The
last line is one JSON object; the exit code is 0 if nothing else happened. Needs torch, which writes the files.
"""

import argparse
import collections
import io
import json
import logging
import os
import pickletools
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 1 << 30

FORMATS = {"zip": 8, "pickle": 16, "members": 4, "legacy": 8, "safetensors": 4, "header": 6, "orbax": 1}
"""The kinds of variants, and their shares: of bytes in files of torch's and .safetensors; of the pickle in a zip file
whose checksums are right; of a zip file's members; of the JSON of .safetensors; of a file in an Orbax folder."""

CANARY = "canary"
SNIPPETS = [
    b"cposix\nmkdir\n(X\x06\x00\x00\x00canarytR",
    b"(X\x06\x00\x00\x00canaryiposix\nmkdir\n",
    b"(cposix\nmkdir\nX\x06\x00\x00\x00canaryo",
    b"cbuiltins\neval\n(X\x21\x00\x00\x00__import__('os').mkdir('canary')tR",
    b"\x8c\x0bantigravity\x8c\x09os.system\x93\x8c\x06canary\x85R",
    b"cposix\nmkdir\n(X\x06\x00\x00\x00canaryt\x81",
    b"}X\x0c\x00\x00\x00__setstate__cposix\nmkdir\nsb",
    b"\x82\x01)R",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ccollections\nOrderedDict\n)R",
    b"r\xff\xff\xff\xff",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"h\x00h\x00\x86" * 20,
    b"]q\x00h\x00a",
    b")" + b"\x85" * 5000,
]
"""Parts of pickles that would run code in Python's unpickler, or are larger than they look."""


def mutate(data: bytes, rng: np.random.Generator, hot: range) -> bytes:
    """One to three edits, half of them within the hot range, which holds names, shapes and sizes."""
    for _ in range(rng.integers(1, 4)):
        span = hot if rng.random() < 0.5 else range(len(data))
        start = int(rng.integers(span.start, max(span.start + 1, min(span.stop, len(data)))))
        length = int(rng.choice([1, 2, 4, 8, 64, 4096]))
        end = start + length
        chunk = data[start:end]
        edits = {
            "flip a bit": bytes([chunk[0] ^ (1 << int(rng.integers(8)))]) + chunk[1:] if chunk else b"",
            "set bytes": rng.bytes(len(chunk)),
            "set a digit": str(rng.integers(10)).encode() + chunk[1:],
            "zero": bytes(len(chunk)),
            "all ones": b"\xff" * len(chunk),
            "delete": b"",
            "insert": rng.bytes(length) + chunk,
            "repeat": chunk + chunk,
            "copy from elsewhere": data[(other := int(rng.integers(max(len(data), 1)))) : other + len(chunk)],
        }
        edit = rng.choice(["truncate", *edits])
        data = data[:start] if edit == "truncate" else data[:start] + edits[edit] + data[end:]
    return data


def hot_range(name: str, data: bytes) -> range:
    """The part of a file that holds names, shapes and sizes."""
    if name == "zip":  # the central directory at the end, of about 100 bytes a tensor
        return range(data.index(b"PK\x01\x02"), len(data))
    if name == "safetensors":
        return range(8 + int.from_bytes(data[:8], "little"))
    return range(20_000)


def mutate_pickle(data: bytes, rng: np.random.Generator) -> bytes:
    """Edits whole instructions: removes, repeats, moves, exchanges their codes or adds such as `SNIPPETS`."""
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    parts = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    codes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    if rng.random() < 0.1:  # a random program
        parts = [codes[rng.integers(len(codes))] + rng.bytes(int(rng.integers(9))) for _ in range(rng.integers(2, 99))]
    for _ in range(rng.integers(1, 5)):
        at, other = (int(rng.integers(len(parts))) for _ in range(2))
        snippet = SNIPPETS[rng.integers(len(SNIPPETS))]
        replacements = {
            "remove": b"",
            "repeat another": parts[other] + parts[at],
            "add": snippet + parts[at],
            "add and take off the stack": snippet + b"0" + parts[at],
            "replace": snippet,
            "another code": codes[rng.integers(len(codes))] + parts[at][1:],
            "other arguments": parts[at][:1] + rng.bytes(len(parts[at]) - 1),
        }
        parts[at] = replacements[str(rng.choice(list(replacements)))]
    return b"".join(parts)


def mutate_members(data: bytes, rng: np.random.Generator, edit: str) -> bytes:
    """Writes a zip file again, with right checksums, after an edit of its pickle or of its members."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        names = old.namelist()
        chosen = names[rng.integers(len(names))]
        kind = rng.choice(["twice", "leave out", "cut", "compress", "rename", "replace"])
        for name in names:
            content, compression = old.read(name), zipfile.ZIP_STORED
            if edit == "pickle":
                content = mutate_pickle(content, rng) if name.endswith("data.pkl") else content
            elif name == chosen:
                if kind == "leave out":
                    continue
                content = content[: len(content) // 2] if kind == "cut" else content
                content = old.read(names[rng.integers(len(names))]) if kind == "replace" else content
                compression = zipfile.ZIP_DEFLATED if kind == "compress" else compression
                if kind == "twice":
                    new.writestr(name, content)
                if kind == "rename":
                    name = names[rng.integers(len(names))]
            new.writestr(name, content, compression)
    return out.getvalue()


def mutate_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes values in the JSON of a .safetensors file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    names = list(header)
    for _ in range(rng.integers(1, 4)):
        name = names[rng.integers(len(names))]
        values: list[Any] = [-1, 0, 2**63, 2**64, 1e308, None, "F64", "BF16", [], [[]], {}, [2**62, 4], "x" * 500]
        value = values[rng.integers(len(values))]
        key = ["dtype", "shape", "data_offsets", "more"][rng.integers(4)]
        entry = header.get(name)
        if rng.random() < 0.2:
            header[name] = value
        elif rng.random() < 0.2:
            header[["x\n\x1b[2J", "\ud800", "", name + ".", f"module.{name}"][rng.integers(5)]] = header.pop(
                name, value
            )
        elif isinstance(entry, dict) and isinstance(entry.get(key), list) and entry[key]:
            entry[key][rng.integers(len(entry[key]))] = value
        elif isinstance(entry, dict):
            entry[key] = value
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data[end:]


def write_originals(folder: Path) -> None:
    """Writes small valid files of each format."""
    import safetensors.torch
    import torch

    from twins_jax.port.convert import to_layout
    from twins_jax.port.infer import Inferred
    from twins_jax.port.orbax_io import write_params
    from twins_jax.port.rules import TORCH

    shapes = Inferred("twins_svt_tiny", 3, 10, stage_norms=False).expected()
    rng = np.random.default_rng(0)
    params = {path: rng.standard_normal(shape, dtype=np.float32).astype(np.float16) for path, shape in shapes.items()}
    layout = to_layout(params, TORCH)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in layout.items()}
    value = {"model": state, "args": argparse.Namespace(output=folder), "best": np.float64(0.5)}
    torch.save(value, folder / "zip")
    torch.save(value, folder / "legacy", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "safetensors")
    write_params(str(folder / "orbax"), params)


def write_variant(originals: Path, kind: str, seed: list[int], target: Path) -> None:
    """Writes one variant; of an Orbax folder, over one file of the originals', which `restore` brings back."""
    rng = np.random.default_rng(seed)
    if kind == "orbax":
        files = sorted(path for path in (originals / "orbax").rglob("*") if path.is_file())
        damaged = files[rng.integers(len(files))]
        data = damaged.read_bytes()
        (target / damaged.relative_to(originals / "orbax")).write_bytes(mutate(data, rng, range(len(data))))
        return
    source = {"pickle": "zip", "members": "zip", "header": "safetensors"}.get(kind, kind)
    data = (originals / source).read_bytes()
    if kind in ("pickle", "members"):
        data = mutate_members(data, rng, kind)
    elif kind == "header":
        data = mutate_header(data, rng)
    elif kind == "legacy" and rng.random() < 0.5:
        starts = [0]
        while len(starts) < 5:
            starts.append(starts[-1] + [at for _, _, at in pickletools.genops(data[starts[-1] :])][-1] + 1)
        start, end = starts[3:]
        data = data[:start] + mutate_pickle(data[start:end], rng) + data[end:]
    else:
        data = mutate(data, rng, hot_range(kind, data))
    target.write_bytes(data)


class Watch:
    """Lists what must not happen while a file is read."""

    PROCESSES = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile", "pty.", "ctypes.")
    CODE = ("import", "exec", "compile", "marshal.", "pickle.", "socket.", "os.mkdir", "os.rename", "os.remove")

    def __init__(self) -> None:
        self.events: tuple[str, ...] = ()
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.events:
            return
        is_write = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        if is_write or event.startswith(self.events):
            self.seen.append(f"{event} {arguments!r:.200}")


def memory(entry: str) -> int:
    """One of the entries about memory that Linux has for this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith(f"{entry}:"))


def run_child(originals: Path, first: int, count: int, seed: int) -> None:
    """Reads the variants from `first` on, and prints the figures."""
    import encodings.cp437  # noqa: F401 - zipfile's for names
    import gc
    import shutil

    from twins_jax.errors import InputError
    from twins_jax.port.convert import port
    from twins_jax.port.read import read_weights

    kinds = [kind for kind, share in FORMATS.items() for _ in range(share)]
    for name in ("zip", "legacy", "safetensors", "orbax"):  # imports what is imported when it is needed
        port(read_weights(originals / name))
    warnings.simplefilter("ignore")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    watch = Watch()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((memory("VmSize") << 20) + MEMORY, hard))
    before = memory("VmRSS")
    counts: collections.Counter[str] = collections.Counter()
    found: list[str] = []
    slowest = 0.0
    for number in range(first, count):
        kind = kinds[number % len(kinds)]
        target = Path(f"variant_{'orbax' if kind == 'orbax' else 'file'}")
        if kind == "orbax":
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(originals / "orbax", target)
        write_variant(originals, kind, [seed, number], target)
        Path("number").write_text(str(number))
        start = time.monotonic()
        watch.events = Watch.PROCESSES if kind == "orbax" else Watch.PROCESSES + Watch.CODE
        try:
            port(read_weights(target))
            outcome = "read"
        except InputError as error:
            outcome = "refused"
            if "MemoryError" in str(error) or len(str(error).partition("\n")[0]) > 2000:
                found.append(f"{number} {kind}: {error!s:.200}")
        except BaseException as error:
            outcome = "crashed"
            found.append(f"{number} {kind}: {error!r:.300}")
        finally:
            if kind == "orbax":
                gc.collect()  # its dropped coroutines, whose errors Python would write, with source lines, at any time
            watch.events = ()
        slowest = max(slowest, time.monotonic() - start)
        counts[f"{kind} {outcome}"] += 1
        found += [f"{number} {kind}: {event}" for event in watch.seen]
        watch.seen.clear()
        if Path(CANARY).exists():
            found.append(f"{number} {kind}: code was run")
            Path(CANARY).rmdir()
    grown = memory("VmHWM") - before
    print(json.dumps({"counts": counts, "found": found, "peak_mb": grown, "slowest_s": slowest}))  # noqa: T201


def main() -> int:
    """Runs children until every variant was read; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--originals", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        run_child(args.originals, args.child, args.count, args.seed)
        return 0
    counts: collections.Counter[str] = collections.Counter()
    found, peak, slowest, first, start = [], 0.0, 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        originals, place = Path(folder, "originals"), Path(folder, "place")
        originals.mkdir()
        place.mkdir()
        write_originals(originals)
        while first < args.count:
            last = min(first + 1000, args.count)
            command = [sys.executable, os.path.abspath(__file__), "--child", str(first), "--count", str(last)]
            done = subprocess.run(
                [*command, "--seed", str(args.seed), "--originals", str(originals)],
                cwd=place,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                number = int((place / "number").read_text())
                found.append(f"{number}: the process ended with {done.returncode}: {done.stderr[-300:]}")
                first = number + 1
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            counts.update(result["counts"])
            found += result["found"]
            peak, slowest = max(peak, result["peak_mb"]), max(slowest, result["slowest_s"])
            first = last
    seconds = round(time.monotonic() - start)
    figures = {"files": counts.total(), "counts": dict(sorted(counts.items())), "found": found}
    print(json.dumps(figures | {"peak_mb": round(peak), "slowest_s": round(slowest, 1), "seconds": seconds}))  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
