"""One process with 8 simulated devices: as a script it measures, as a test it judges the measurements."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

import train.run
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.data.classification import eval_batches, train_batches
from train.distributed import to_global
from train.evaluators.classification import evaluate
from train.recipes import digits
from train.run import Run, build
from train.state import TrainState
from twins_jax import config as models
from twins_jax.sharding import AXES, make_mesh

DEVICES = 8
FSDP = {"one device": 1, "data 8": 1, "fsdp 8": 8, "data 2, fsdp 4": 4}
STEPS = 4

# For what depends little on the model: a block of each kind, so narrow that it compiles in seconds.
models.VARIANTS["nano"] = models.TwinsConfig((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 1, 1), 7)


def layout(name: str) -> Mesh:
    if name == "one device":
        return jax.make_mesh((1, 1), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1])
    return make_mesh(FSDP[name])


def config(folder: Path, name: str, **changes: Any) -> TrainConfig:
    """Everything that is random is on, and the learning rate is high from the first step."""
    base = digits()
    base = dataclasses.replace(
        base,
        workdir=str(folder),
        data=dataclasses.replace(base.data, dir=str(folder / "digits")),
        optim=dataclasses.replace(base.optim, warmup_epochs=0, ema_decay=0.5),
        mix=dataclasses.replace(base.mix, mixup_alpha=0.8, cutmix_alpha=1.0, erase_probability=0.5),
        steps=100,
        batch_size=32,
        eval_batch_size=48,
        fsdp=FSDP[name],
    )
    return dataclasses.replace(base, **changes)


def built(config: TrainConfig, mesh: Mesh) -> Run:
    train.run.make_mesh = lambda fsdp: mesh  # noqa: ARG005
    return build(config)


def trained(run: Run, state: TrainState, batches: list[Any]) -> tuple[TrainState, list[list[float]]]:
    values = []
    for batch in batches:
        state, metrics = run.train_step(state, to_global(batch, run.mesh))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    return state, values


def device_bytes(state: TrainState) -> list[int]:
    """What each device holds of a state."""
    shards = [shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    used = dict.fromkeys(sorted({shard.device.id for shard in shards}), 0)
    for shard in shards:
        used[shard.device.id] += shard.data.nbytes
    return list(used.values())


def rounded(state: TrainState) -> TrainState:
    """Each parameter moved to one of its two neighbours in float32."""
    rng = np.random.default_rng(0)

    def move(leaf: jax.Array) -> jax.Array:
        towards = np.where(rng.random(leaf.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        return jax.device_put(np.nextafter(np.asarray(leaf), towards), leaf.sharding)

    return dataclasses.replace(state, params=jax.tree.map(move, state.params))


def same(first: Any, second: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), first, second)))


def measure(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    runs = {name: built(config(folder, name), layout(name)) for name in FSDP}
    data = iter(train_batches(config(folder, "one device").data, 32, seed=0))
    batches = [next(data) for _ in range(STEPS)]
    copies = jax.tree.map(jax.numpy.copy, runs["one device"].state)
    for name, run in runs.items():
        parts = (to_global(batch, run.mesh) for batch in eval_batches(run.config.data, run.config.eval_batch_size))
        found[name] = {"eval": evaluate(run.eval_step, run.state.params, parts)}
        state, values = trained(run, run.state, batches)
        found[name] |= {
            "values": values,
            "bytes": device_bytes(state),
            "total": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
            "layout kept": jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, run.state),
            "donated": all(leaf.is_deleted() for leaf in jax.tree.leaves(run.state)),
        }
        if name == "fsdp 8":
            last = state
    found["rounded"] = {"values": trained(runs["one device"], rounded(copies), batches)[1]}

    # Saved under one layout, restored under each: the same values, and the same next steps where the layout is the same.
    more = [next(data) for _ in range(2)]
    with Checkpoints(folder, digits().checkpoint) as checkpoints:
        checkpoints.save(last, STEPS, data, None)
    saved = jax.tree.map(np.asarray, last)
    end, values = trained(runs["fsdp 8"], last, more)
    end = jax.tree.map(np.asarray, end)
    for name, run in runs.items():
        with Checkpoints(folder, digits().checkpoint) as checkpoints:
            restored = checkpoints.restore(run.state, iter(train_batches(run.config.data, 32, seed=0)))
        assert restored is not None
        found[name]["restored"] = same(saved, restored)
        if name == "fsdp 8":
            again, values_again = trained(run, restored, more)
            found["resumed"] = same(end, again) and values == values_again

    for name in ("one device", "data 2, fsdp 4"):
        for parts in (1, 2):
            nano = digits().model.__class__(name="nano")
            accumulate = dataclasses.replace(config(folder, name).optim, accumulate=parts)
            run = built(config(folder, name, model=nano, optim=accumulate), layout(name))
            found[f"{name}, {parts} part"] = {"values": trained(run, run.state, batches)[1]}
    return found


if __name__ == "__main__":
    result = measure(Path(sys.argv[1]))
    Path(sys.argv[1], "found.json").write_text(json.dumps(result))
    print(json.dumps(result, indent=1))
