"""Damaged and crafted files of every kind: each is refused with its name, or read; nothing else.

python tests/soak/damage.py [FILES] makes so many of each kind with a fixed seed and prints how many
were tried, refused, read as they were before, and read as something else; and every one that
failed: with an error that is no ValueError or does not name the file, after more than ten seconds,
or, where there are checksums, read as something else.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.build import molecule

from mdtrajnet_fast import MDtrajNet, TrainConfig, Trajectory, fit, load_model, save_model
from mdtrajnet_fast.cli import main as command_line
from mdtrajnet_fast.data.records import Writer, load_records
from mdtrajnet_fast.io.trajectory import open_writer

MEMORY = 12 << 30  # bytes of addresses that this may take
ODD = [None, True, -1, 0, 1, 7, 1e9, 10**9, 1e308, float("nan"), float("inf"), "x", "", [], [1], {}]


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One of: some bits, a run of bytes, a cut, a piece that is repeated."""
    data, place = bytearray(raw), rng.randrange(len(raw))
    kind = rng.randrange(4)
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place : place + rng.randint(1, 64)] = rng.randbytes(rng.randint(0, 64))
    elif kind == 2:
        del data[place:]
    else:
        data[place:place] = data[place : place + rng.randint(1, 4096)]
    return bytes(data)


def odd(text: str, rng: random.Random) -> str:
    """A JSON text in which one entry, at any depth, is odd, missing or new."""
    content = json.loads(text)
    node = content
    while isinstance(node, dict) and node:
        key = rng.choice([*node])
        if isinstance(node[key], dict) and rng.random() < 0.8:
            node = node[key]
            continue
        how = rng.random()
        if how < 0.15:
            del node[key]
        elif how < 0.2:
            node["unheard"] = 1
        else:
            node[key] = rng.choice(ODD)
        break
    return json.dumps(content)


class Kind(NamedTuple):
    """A file, and what reads it and says in a few bytes what it has read.

    checked: whether checksums tell what is not as it was. crafted: whether it is JSON, to be made
    odd, and how it is to be changed before that.
    """

    path: Path
    read: Callable[[], object]
    checked: bool = False
    crafted: Callable[[str], str] | None = None


def digest(*arrays: object) -> str:
    found = hashlib.sha256()
    for x in arrays:
        found.update(np.ascontiguousarray(x).tobytes() if isinstance(x, np.ndarray) else b"%r" % x)
    return found.hexdigest()


def of_model(model: MDtrajNet) -> str:
    weights = [x.numpy() for _, x in sorted(model.state_dict().items())]
    return digest(model.name, model.config.to_dict(), *weights)


def of_records(path: Path) -> str:
    return digest(*(x for r in load_records(path) for x in (r.positions, r.velocities, r.masses)))


def attempt(kind: Kind, whole: object, counts: dict[str, int]) -> None:
    counts["tried"] += 1
    begun = time.perf_counter()
    try:
        same = kind.read() == whole
        counts["the same" if same else "other"] += 1
        if kind.checked and not same:
            print("  read as something else")
            counts["failed"] += 1
    except ValueError as error:
        counts["refused"] += 1
        if kind.path.name not in str(error) and kind.path.parent.name not in str(error):
            print("  does not name the file:", str(error)[:150])
            counts["failed"] += 1
    except Exception as error:
        print(f"  {type(error).__name__}: {str(error)[:150]}")
        counts["failed"] += 1
    if (seconds := time.perf_counter() - begun) > 10:
        print(f"  took {seconds:.0f} s")
        counts["failed"] += 1


def kinds_in(folder: Path) -> dict[str, Kind]:
    """A whole file of every kind."""
    water = molecule("H2O")
    x = np.random.default_rng(0).normal(size=(30, 3, 3))
    kinds: dict[str, Kind] = {}
    for suffix in (".traj", ".extxyz", ".h5"):
        path = folder / f"run{suffix}"
        scalars = {"potential_energies": x[:, 0, 0], "heat": x[:, 0, 1]}
        Trajectory(water, np.arange(30.0), x, x, **scalars).write(path)

        def both(path: Path = path) -> str:
            held = Trajectory.read(path)
            open_writer(path, water, append=True).close()
            return digest(held.times, held.positions, held.momenta, *held.scalars.values())

        kinds[path.name] = Kind(path, both)
        kinds[f"{path.name}, as data"] = Kind(path, lambda path=path: of_records(path))
    data = folder / "data.h5"
    writer = Writer(data)
    writer.add_group("mol", water.numbers, frame_fs=1.0, pos_scale=1e-3, vel_scale=1e-3)
    for k in range(2):
        writer.append("mol", f"traj{k:02d}", x, x, energy=np.zeros(30))
    kinds["data.h5"] = Kind(data, lambda: of_records(data))

    save_model(load_model("molecules-nve-small"), folder / "model")
    file, weights = (folder / "model" / name for name in ("config.json", "weights.safetensors"))
    kinds["config.json"] = Kind(file, lambda: of_model(load_model(file.parent)), True, str)
    kinds["config.json, crafted"] = Kind(file, kinds["config.json"].read, False, unsigned)
    kinds["weights.safetensors"] = Kind(weights, kinds["config.json"].read, True)
    published = folder / "tiny.pt"
    published.write_bytes((Path(__file__).parents[1] / "files" / "tiny.pt").read_bytes())
    kinds["tiny.pt"] = Kind(published, lambda: of_model(load_model(published)), True)

    recipe = folder / "recipe.toml"
    recipe.write_text('output = "o"\ndata = "d.h5"\nsteps = 9\nlearning_rate = 1e-3\n')
    kinds["recipe.toml"] = Kind(recipe, lambda: TrainConfig.read(recipe))
    config = TrainConfig(
        output=str(folder / "training"), data=(str(data),), steps=2, batch_size=2, model=SIZES
    )
    fit(config, progress=False)
    state = folder / "training" / "checkpoint.pt"
    kinds["checkpoint.pt"] = Kind(state, lambda: of_model(fit(config, progress=False)), True)

    run = folder / "run-of-water"
    make = ["simulate", "water", "--duration", "6", "--equilibration", "0", "--quiet"]
    silently([*make, "--model", "molecules-nve-small", "--output", str(run)])

    def resumed() -> str:
        silently(["simulate", "--resume", str(run), "--quiet"])
        held = Trajectory.read(run / "trajectory.traj")
        return digest(held.times, held.positions, held.momenta)

    kinds["run.json"] = Kind(run / "run.json", resumed, False, str)
    return kinds


SIZES = {
    "num_attn_blocks": 1,
    "key_weight_hidden_neurons": (8,),
    "value_weight_hidden_neurons": (8,),
}


def unsigned(text: str) -> str:
    """A config.json without its checksum: as an older version wrote it, or somebody hostile."""
    return json.dumps({k: v for k, v in json.loads(text).items() if k != "sha256"})


def silently(arguments: list[str]) -> None:
    """A command; what it refuses comes as a ValueError with what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        if command_line(arguments) != 0:
            raise ValueError(said.getvalue())


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    rng = random.Random(1)
    total = dict.fromkeys(("tried", "refused", "the same", "other", "failed"), 0)
    with tempfile.TemporaryDirectory() as name:
        for what, kind in kinds_in(Path(name)).items():
            counts = dict.fromkeys(total, 0)
            kept = {p: p.read_bytes() for p in kind.path.parent.rglob("*") if p.is_file()}
            raw, whole = kept[kind.path], kind.read()
            for number in range(files):
                if kind.crafted and number % 4:
                    spoiled = odd(kind.crafted(raw.decode()), rng).encode()
                else:
                    spoiled = mutated(raw, rng)
                kind.path.write_bytes(spoiled)
                attempt(kind, whole, counts)
                for path, content in kept.items():  # what was read may have been written, too
                    path.write_bytes(content)
            print(what, counts, flush=True)
            total = {key: total[key] + counts[key] for key in total}
    print("all", total)


if __name__ == "__main__":
    main()
