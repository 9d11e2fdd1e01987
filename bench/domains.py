"""One large crystal on several processes beside one: time, agreement, what they tell each other.

    python bench/domains.py [--cells 23] [--processes 2 4] [--windows 20] [--output DIRECTORY]

Diamond at 300 K, 8 cells^3 atoms, one thread a process; each number of processes in turn, started
by torchrun, twice over. What is predicted comes from the geometry and the sizes of the model
alone. Processor time is what tells on a machine that is busy, or has fewer cores than processes:
two processes are twice as fast as one if they need no more of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which reads it

import numpy as np  # noqa: E402
import torch  # noqa: E402
from periodic import diamond  # noqa: E402
from report import HERE, began, heading, launched, write  # noqa: E402

from mdtrajnet_fast import MDtrajNet, load_model, thermal_velocities  # noqa: E402
from mdtrajnet_fast.md.domains import Processes, bricks_of  # noqa: E402
from mdtrajnet_fast.md.rollout import rollout  # noqa: E402
from mdtrajnet_fast.md.window import SKIN, stride_of  # noqa: E402
from mdtrajnet_fast.system import System  # noqa: E402

MODEL = "diamond"
FRAME = 4  # windows
ROUNDS = 2


class Counted(Processes):
    """Processes that count what they send."""

    bytes = messages = sums = 0

    def begin_swap(
        self, out: np.ndarray, to: np.ndarray, into: np.ndarray, of: np.ndarray
    ) -> list[Any]:
        others = [k for k in range(self.size) if k != self.rank and to[k]]
        self.messages += len(others)
        self.bytes += sum(int(to[k]) for k in others) * out[:1].nbytes if len(out) else 0
        return super().begin_swap(out, to, into, of)

    def sum(self, x: np.ndarray) -> None:
        self.sums += 1
        super().sum(x)


def crystal(cells: int) -> tuple[System, np.ndarray]:
    atoms = diamond(cells)
    thermal_velocities(atoms, 600.0, 0)  # half becomes potential energy
    return System.from_atoms(atoms), atoms.get_momenta()


def worker(cells: int, windows: int, folder: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    processes = Counted() if "LOCAL_RANK" in os.environ else None
    model, (system, momenta) = load_model(MODEL), crystal(cells)
    h = stride_of(model, "symplectic", None)
    settings: dict[str, Any] = {"dt": FRAME * h, "duration": windows * h, "processes": processes}
    times = [time.perf_counter()]
    cpu = [time.process_time()]
    for frames in rollout(model, system, momenta, **settings):
        if frames.times.size:
            times.append(time.perf_counter())
            cpu.append(time.process_time())
    rank = processes.rank if processes else 0
    found = {"seconds": np.diff(times) / FRAME, "cpu": np.diff(cpu) / FRAME}
    if processes:
        found |= {"bytes": processes.bytes, "messages": processes.messages, "sums": processes.sums}
    if rank == 0:
        found["positions"] = frames.positions[-1]
    np.savez(folder / f"{rank}.npz", **found)
    if processes:
        processes.close()


def measure(count: int, cells: int, windows: int) -> list[dict[str, np.ndarray]]:
    """What each of so many processes has found."""
    with TemporaryDirectory() as folder:
        words = [*launched(count), __file__, "--worker", folder]
        words += ["--cells", str(cells), "--windows", str(windows)]
        subprocess.run(words, check=True)
        return [dict(np.load(f"{folder}/{k}.npz")) for k in range(count)]


def predicted(model: MDtrajNet, system: System, count: int, windows: int) -> dict[str, float]:
    """Ghosts of a process, and the bytes and messages that it sends, of so many windows."""
    sizes = model.config.window_potentials
    assert sizes is not None
    cell = system.cell[0]
    bricks = np.array(bricks_of(cell, system.pbc[0], count))
    sides, reach = np.diag(cell) / bricks, model.config.radial_cutoff + SKIN
    volume = np.prod(sides + np.where(bricks > 1, 2 * reach, 0)) - np.prod(sides)
    ghosts = len(system.numbers) / np.prod(np.diag(cell)) * volume
    row = 4 * sizes.channels  # float32
    # labels of components pass from brick to brick until none changes; each brick has two sides
    labels = 1 + max(bricks) // 2
    neighbors = np.prod(np.minimum(bricks, 3)) - 1
    surroundings, densities = 24 + 8 * labels, sizes.layers * 10 * row
    seen = (sizes.layers - 1) * row
    slopes, frames = 2 * windows + 1, windows // FRAME + 1
    swaps = slopes * (1 + labels + 2 * sizes.layers - 1) + frames * (1 + labels + sizes.layers - 1)
    each = slopes * (surroundings + seen + densities) + frames * (surroundings + seen)
    return {
        "ghosts": float(ghosts),
        "bytes": float(ghosts * (each + 24 + 16)),  # at first offsets, species and masses
        "messages": float((swaps + 3) * neighbors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cells", type=int, default=23, help="along each side: 23 are 97,336 atoms"
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.cells, options.windows, options.worker)
        return
    model, (system, _) = load_model(MODEL), crystal(options.cells)
    counts = [1, *options.processes]
    found: dict[int, list[list[dict[str, np.ndarray]]]] = {n: [] for n in counts}
    for _ in range(ROUNDS):
        for n in counts:
            found[n].append(measure(n, options.cells, options.windows))
            print(f"{n}: {np.median(found[n][-1][0]['seconds']):.3f} s a window", flush=True)
    report = began(False) | {"atoms": len(system.numbers), "windows": options.windows, "rows": []}
    alone = found[1][0][0]["positions"]
    for n in counts:
        runs = found[n]
        row: dict[str, Any] = {
            "processes": n,
            # of the processes, which wait for each other, the first; the last frames' median
            "seconds": min(float(np.median(run[0]["seconds"][1:])) for run in runs),
            "cpu": min(sum(float(np.median(x["cpu"][1:])) for x in run) for run in runs),
            "deviation": float(abs(runs[0][0]["positions"] - alone).max()),
        }
        if n > 1:
            row["predicted"] = predicted(model, system, n, options.windows)
            for name in ("bytes", "messages", "sums"):
                row[name] = float(np.mean([x[name] for x in runs[0]]))
        report["rows"].append(row)
    write(report, markdown(report), options.output, "domains")


def markdown(report: dict[str, Any]) -> str:
    one, windows = report["rows"][0], report["windows"]
    out = [
        *heading(report),
        f"Diamond, {report['atoms']:,} atoms, {windows} windows, {os.cpu_count()} cores. Times are "
        "of one window; bytes, messages and sums those that a process sends, of all windows.",
        "",
        "| processes | s | speed-up | processor s | of one process | largest deviation, Å "
        "| MB sent | predicted | messages | predicted | sums |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        line = [
            str(row["processes"]),
            f"{row['seconds']:.3f}",
            f"{one['seconds'] / row['seconds']:.2f}",
            f"{row['cpu']:.3f}",
            f"{row['cpu'] / one['cpu']:.3f}",
            f"{row['deviation']:.1e}",
        ]
        if "predicted" in row:
            line += [f"{row['bytes'] / 1e6:.1f}", f"{row['predicted']['bytes'] / 1e6:.1f}"]
            line += [f"{row['messages']:.0f}", f"{row['predicted']['messages']:.0f}"]
            line += [f"{row['sums']:.0f}"]
        else:
            line += 5 * [""]
        out.append("| " + " | ".join(line) + " |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
