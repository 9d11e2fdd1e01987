"""Damaged and crafted files of every kind: each is refused with its name, or read; nothing else.

python tests/soak/damage.py [FILES] makes so many of each kind with a fixed seed and prints how many
were tried, refused and read, and every one that failed: with an error that is no ValueError or does
not name the file, or after more than ten seconds.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase.build import molecule

from mdtrajnet_fast import TrainConfig, Trajectory, load_model, save_model
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


def attempt(path: Path, read: Callable[[], object], counts: dict[str, int]) -> None:
    counts["tried"] += 1
    begun = time.perf_counter()
    try:
        read()
        counts["read"] += 1
    except ValueError as error:
        counts["refused"] += 1
        if path.name not in str(error) and path.parent.name not in str(error):
            print("  does not name the file:", str(error)[:150])
            counts["failed"] += 1
    except Exception as error:
        print(f"  {type(error).__name__}: {str(error)[:150]}")
        counts["failed"] += 1
    if (seconds := time.perf_counter() - begun) > 10:
        print(f"  took {seconds:.0f} s")
        counts["failed"] += 1


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        water = molecule("H2O")
        x = np.random.default_rng(0).normal(size=(30, 3, 3))
        kinds: dict[str, tuple[Path, Callable[[], object]]] = {}
        for suffix in (".traj", ".extxyz", ".h5"):
            path = folder / f"run{suffix}"
            scalars = {"potential_energies": x[:, 0, 0], "heat": x[:, 0, 1]}
            Trajectory(water, np.arange(30.0), x, x, **scalars).write(path)

            def both(path: Path = path) -> None:
                Trajectory.read(path)
                open_writer(path, water, append=True).close()

            kinds[path.name] = path, both
            kinds[f"{path.name}, as data"] = path, lambda path=path: load_records(path)
        data = folder / "data.h5"
        writer = Writer(data)
        writer.add_group("mol", water.numbers, frame_fs=1.0, pos_scale=1e-3, vel_scale=1e-3)
        writer.append("mol", "traj00", x, x, energy=np.zeros(30))
        kinds["data.h5"] = data, lambda: load_records(data)
        save_model(load_model("molecules-nve-small"), folder / "model")
        for file in ("config.json", "weights.safetensors"):
            kinds[file] = folder / "model" / file, lambda: load_model(folder / "model")
        published = folder / "tiny.pt"
        published.write_bytes((Path(__file__).parents[1] / "files" / "tiny.pt").read_bytes())
        kinds["tiny.pt"] = published, lambda: load_model(published)
        recipe = folder / "recipe.toml"
        recipe.write_text('output = "o"\ndata = "d.h5"\nsteps = 9\nlearning_rate = 1e-3\n')
        kinds["recipe.toml"] = recipe, lambda: TrainConfig.read(recipe)
        for kind, (path, read) in kinds.items():
            counts = dict.fromkeys(("tried", "refused", "read", "failed"), 0)
            raw = path.read_bytes()
            for number in range(files):
                crafted = path.suffix == ".json" and number % 4
                spoiled = odd(raw.decode(), rng).encode() if crafted else mutated(raw, rng)
                path.write_bytes(spoiled)
                attempt(path, read, counts)
            path.write_bytes(raw)
            print(kind, counts, flush=True)


if __name__ == "__main__":
    main()
