"""Full disks of every size, under everything that writes: nothing is lost, and all of it goes on.

python tests/soak/full_disks.py [SIZES] [FOLDER]; the disks are file systems in memory, where this
process may mount them, else limits of the size of a file (RLIMIT_FSIZE). For so many amounts of
room each command has to end with status 2, a message and no traceback; what it had written has to
be readable; and, once there is room, the same command (or --resume) has to lead to what a run with
room makes, to the bit. FOLDER: where the work is done.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mdtrajnet_fast import Trajectory, load_model
from mdtrajnet_fast.data.records import load_records
from mdtrajnet_fast.io.trajectory import count_frames
from mdtrajnet_fast.model.archive import load_archive

COMMAND = [sys.executable, "-m", "mdtrajnet_fast"]
MODEL = ["--model", "molecules-nve-small"]
SIMULATE = [
    "simulate",
    "ethanol",
    "--dt",
    "0.1",
    "--duration",
    "60",
    "--equilibration",
    "0",
    *MODEL,
]
GENERATE = ["generate", "O", "N", "--trajectories", "6", "--duration", "50", "--equilibration", "5"]
RECIPE = """
output = "out"
data = "data.h5"
steps = 12
batch_size = 4
validate_every = 4
validation_pairs = 4
checkpoint_minutes = 0.0001
model.num_attn_blocks = 2
threads = 1
validation.held_out = { data = "data.h5", trajectories = ["traj00"] }
"""


class Writer(NamedTuple):
    """A command that writes `out`; how it goes on; what it made; what of it must be readable."""

    begin: list[str]
    go_on: list[str] | None
    made: Callable[[Path], list[np.ndarray]]
    held: Callable[[Path], object]


def run_of(folder: Path, kind: str) -> list[np.ndarray]:
    run = Trajectory.read(folder / "out" / f"trajectory.{kind}")
    return [run.times, run.positions, run.momenta]


def frames_of(folder: Path, kind: str) -> int:
    path = folder / "out" / f"trajectory.{kind}"
    return count_frames(path) if path.exists() else 0


def records_of(folder: Path) -> list[np.ndarray]:
    path = folder / "out.h5"
    records = sorted(load_records(path), key=lambda r: (r.molecule, r.trajectory))
    return [x for r in records for x in (r.positions, r.velocities)]


def some_records_of(folder: Path) -> object:
    path = folder / "out.h5"
    try:
        return load_records(path) if path.exists() else None
    except ValueError as error:
        if "no trajectory to read" in str(error):
            return None
        raise


def weights_of(folder: Path) -> list[np.ndarray]:
    return [x.numpy() for x in load_model(folder / "out").state_dict().values()]


def some_weights_of(folder: Path) -> object:
    """A checkpoint is whole or not there."""
    path = folder / "out" / "checkpoint.pt"
    return load_archive(path, safe=[]) if path.exists() else None


def writers() -> Iterator[tuple[str, Writer]]:
    for kind in ("traj", "extxyz", "h5"):
        yield (
            f"simulate .{kind}",
            Writer(
                [*SIMULATE, *MODEL, "--format", kind, "--output", "out", "--quiet"],
                ["simulate", "--resume", "out", "--quiet"],
                lambda folder, kind=kind: run_of(folder, kind),
                lambda folder, kind=kind: frames_of(folder, kind),
            ),
        )
    yield "generate", Writer([*GENERATE, "--output", "out.h5"], None, records_of, some_records_of)
    yield (
        "train",
        Writer(["train", "recipe.toml", "--quiet"], None, weights_of, lambda folder: None),
    )


@contextmanager
def disk(folder: Path, room: int) -> Iterator[None]:
    """A file system of so many bytes, with data.h5 and recipe.toml beside it."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return done.returncode == 0


def run(arguments: list[str], folder: Path, limit: int | None = None) -> tuple[int, str]:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        preexec_fn=limited,
    )
    return done.returncode, done.stderr


def furnish(folder: Path, data: bytes) -> None:
    (folder / "data.h5").write_bytes(data)
    (folder / "recipe.toml").write_text(RECIPE)


def size_of(folder: Path) -> int:
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def tried(writer: Writer, room: int, folder: Path, data: bytes, mounted: bool) -> str:
    """What happened with so much room, then with enough: "full" or "enough"; raises otherwise."""
    place = folder / "disk"
    place.mkdir()
    with disk(place, size_of_data(data) + room) if mounted else nullcontext():
        furnish(place, data)
        status, said = run(writer.begin, place, None if mounted else room)
        assert "Traceback" not in said, said[-2000:]
        assert status in (0, 2), (status, said[-2000:])
        writer.held(place)
        if status == 0:
            return "enough"
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        begun = (place / "out" / "run.json").exists()
        again = writer.go_on if writer.go_on is not None and begun else writer.begin
        status, said = run(again, place)
        assert status == 0, (again, said[-2000:])
        found = writer.made(place)
        leftover = [
            p.name for p in place.rglob("*") if p.name.endswith((".tmp", ".part", ".journal"))
        ]
        assert not leftover, leftover
    for a, b in zip(found, whole_of[writer.begin[0] + "".join(writer.begin)], strict=True):
        np.testing.assert_array_equal(a, b)
    return "full"


def size_of_data(data: bytes) -> int:
    return (-(-len(data) // 4096) + 3) * 4096


whole_of: dict[str, list[np.ndarray]] = {}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    base = sys.argv[2] if len(sys.argv) > 2 else None
    rng = random.Random(1)
    with tempfile.TemporaryDirectory(dir=base) as name:
        top = Path(name)
        data_made = [*GENERATE, "--output", "data.h5"]
        assert run(data_made, top)[0] == 0
        data = (top / "data.h5").read_bytes()
        (top / "probe").mkdir()
        mounted = may_mount(top / "probe")
        print("on file systems in memory" if mounted else "with limits of the size of files")
        for what, writer in writers():
            place = top / "whole"
            place.mkdir()
            furnish(place, data)
            before = size_of(place)
            status, said = run(writer.begin, place)
            assert status == 0, said
            whole_of[writer.begin[0] + "".join(writer.begin)] = writer.made(place)
            needed = size_of(place) - before
            os.rename(place, top / f"whole-{what.replace(' ', '')}")
            found: list[str] = []
            for k in range(count):
                room = int(needed * (k + rng.random()) / count)
                with tempfile.TemporaryDirectory(dir=top) as one:
                    try:
                        found.append(tried(writer, room, Path(one), data, mounted))
                    except Exception as error:
                        print(f"  FAILED with {room} of {needed} bytes: {error!r:.1500}")
                        found.append("failed")
            counts = {word: found.count(word) for word in ("full", "enough", "failed")}
            print(f"{what} ({needed} bytes): {counts}", flush=True)


if __name__ == "__main__":
    main()
