"""What a rollout of diamond costs: beside LAMMPS and learned potentials, against size, in memory.

    python bench/periodic_speed.py [--model diamond] [--output DIRECTORY] [--quick]
    python bench/periodic_speed.py --parts scaling    # without the other programs

One process, in turn, one thread but where two are said. Needs LAMMPS (lammps_md.py); the other
peers are listed as missing where they are not installed. bench/README.md says what each line is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # of LAMMPS, too

import ase  # noqa: E402
import ase.units  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lammps_md import Box  # noqa: E402
from md_speed import AseLoop, TorchLoop, ani1x  # noqa: E402
from memory import peak_growth  # noqa: E402
from periodic import STATES, diamond  # noqa: E402
from report import HERE, Timing, began, heading, interleave, loglog, write  # noqa: E402

from mdtrajnet_fast import MDtrajNet, load_model, simulate, thermal_velocities  # noqa: E402
from mdtrajnet_fast.md.window import method_of, stride_of  # noqa: E402

CELLS = (4, 8)  # 512 and 4,096 atoms, for peers
PARTS = ["costs", "scaling"]
SIZES = (5, 11, 23)  # 1,000 to 97,336 atoms, for the exponent
WINDOWS = 10  # of these
STEP, LARGE = 0.5, 1.0  # fs, of velocity Verlet
PEER_ATOMS = 512  # the most that all-pair neighbour lists of peers are asked for


def warm(cells: int) -> ase.Atoms:
    """Diamond with velocities of 600 K, half of which become potential energy."""
    atoms = diamond(cells)
    thermal_velocities(atoms, 600.0, 0)
    return atoms


def window_of(model: MDtrajNet) -> float:
    return stride_of(model, method_of(model, None), None)


def ours(model: MDtrajNet, cells: int, windows: int) -> Callable[[], object]:
    """A whole call of `simulate`, a frame for every window."""
    atoms, h = warm(cells), window_of(model)
    return lambda: simulate(atoms, h, duration=windows * h, model=model)


def streamed(model: MDtrajNet, cells: int, windows: int, folder: str) -> Callable[[], object]:
    """The same with the frames in a file, of which the last alone stays in memory."""
    atoms, h, file = warm(cells), window_of(model), Path(folder) / "run.h5"
    how: dict[str, Any] = {"model": model, "trajectory": file, "keep": False}
    return lambda: simulate(atoms, h, duration=windows * h, **how)


def with_threads(threads: int, call: Callable[[], object]) -> Callable[[], object]:
    def threaded() -> None:
        torch.set_num_threads(threads)
        call()
        torch.set_num_threads(1)

    return threaded


def peers(cells: int, quick: bool) -> dict[str, Callable[[], tuple[Callable[[], object], float]]]:
    """What there is besides: each returns a call and the fs that it takes forward."""
    atoms, fs = warm(cells), 2.0 if quick else 5.0

    def lammps(step: float) -> tuple[Callable[[], object], float]:
        box, steps = Box(atoms, STATES["diamond, 512 atoms, 300 K"].pair), 200
        box.begin(step)
        return lambda: box.advance(steps), steps * step

    def ani(member: int | None) -> tuple[Callable[[], object], float]:
        loop = TorchLoop(ani1x(member), atoms)
        return lambda: loop(fs), fs

    def mace() -> tuple[Callable[[], object], float]:
        from mace_random import calculator

        loop = AseLoop(calculator(), atoms)
        return lambda: loop(1.0), 1.0  # two steps, of seconds each

    made: dict[str, Callable[[], tuple[Callable[[], object], float]]] = {
        f"LAMMPS, Tersoff, {STEP:g} fs": lambda: lammps(STEP),
        f"LAMMPS, Tersoff, {LARGE:g} fs": lambda: lammps(LARGE),
    }
    if len(atoms) <= PEER_ATOMS:
        made |= {
            "ANI-1x, one member, bare torch loop, 0.5 fs": lambda: ani(0),
            "ANI-1x, ensemble of 8, bare torch loop, 0.5 fs": lambda: ani(None),
            "MACE of random weights, ASE, 0.5 fs": mace,
        }
    return made


def costs(model: MDtrajNet, quick: bool) -> dict[str, Any]:
    """Seconds a picosecond, by number of atoms."""
    found: dict[str, Any] = {}
    for cells in CELLS:
        h = window_of(model)
        windows = 10 if quick or cells > 4 else 50
        calls = {f"{model.name}, windows of {h:g} fs": ours(model, cells, windows)}
        lengths, missing = {next(iter(calls)): windows * h}, {}
        for name, make in peers(cells, quick).items():
            try:
                calls[name], lengths[name] = make()
            except ImportError as error:
                missing[name] = str(error)
        times = interleave(calls, 3 if quick else 5)
        found[str(8 * cells**3)] = {
            "seconds": {k: _scaled(times[k], 1000 / lengths[k]) for k in times},
            "missing": missing,
        }
    return found


def _scaled(timing: Timing, factor: float) -> Timing:
    return {k: factor * timing[k] for k in ("median", "min")}


def scaling(model: MDtrajNet, name: str, quick: bool) -> dict[str, Any]:
    """Microseconds an atom and window and peak memory of whole rollouts, against size."""
    rows = []
    for cells in SIZES[:2] if quick else SIZES:
        atoms = 8 * cells**3
        call = ours(model, cells, WINDOWS)
        calls = {n: with_threads(n, call) for n in ((1, 2) if cells == SIZES[-1] else (1,))}
        times = interleave(calls, 1 if cells == SIZES[-1] else 3)
        command = [sys.executable, __file__, "--memory", str(cells), "--model", name]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(
            {
                "atoms": atoms,
                "seconds": times[1]["min"] / WINDOWS,
                "two_threads": times[2]["min"] / WINDOWS if 2 in times else None,
                "bytes_per_atom": int(run.stdout) / atoms,
            }
        )
    logs = np.log([[row["atoms"], row["seconds"]] for row in rows])
    return {"rows": rows, "exponent": float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])}


def memory(name: str, cells: int) -> int:
    """Bytes by which the peak grows in a rollout whose last frame alone is kept."""
    model = load_model(name)
    with TemporaryDirectory() as small, TemporaryDirectory() as large:
        streamed(model, 3, 2, small)()  # code pages and folded weights belong to no atom
        return peak_growth(streamed(model, cells, WINDOWS, large))


def markdown(report: dict[str, Any]) -> str:
    out = [*heading(report)]
    for atoms, found in report.get("costs", {}).items():
        ms = {name: 1e3 * timing["median"] for name, timing in found["seconds"].items()}
        own = next(iter(ms.values()))
        out += [
            f"**Diamond, {int(atoms):,} atoms**: wall-clock time of a picosecond, one thread, "
            "medians of calls taken in turn, the fastest in brackets.",
            "",
            "| | ms per ps | over ours |",
            "|---|---:|---:|",
        ]
        for name, value in ms.items():
            least = 1e3 * found["seconds"][name]["min"]
            out.append(f"| {name} | {value:,.0f} ({least:,.0f}) | {value / own:.2g} |")
        out += [f"| {name} | missing: {why} | |" for name, why in found["missing"].items()]
        out.append("")
    if "scaling" in report:
        out += scaling_lines(report["scaling"])
    return "\n".join(out) + "\n"


def scaling_lines(table: dict[str, Any]) -> list[str]:
    out = [
        f"Whole rollouts of {WINDOWS} windows with a frame each; exponent of time against atoms "
        f"{table['exponent']:.2f}. Memory: growth of the peak where frames go to a file and the "
        "last one alone is kept, state and neighbour list included.",
        "",
        "| atoms | µs per atom and window | with two threads | kB per atom |",
        "|---:|---:|---:|---:|",
    ]
    for row in table["rows"]:
        each = [row["seconds"], row.get("two_threads")]
        cells = ["" if x is None else f"{1e6 * x / row['atoms']:.2f}" for x in each]
        cells.append(f"{row['bytes_per_atom'] / 1000:.2f}")
        out.append(f"| {row['atoms']:,} | {' | '.join(cells)} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="diamond", help="name or folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="default: results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--memory", type=int, metavar="CELLS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(memory(options.model, options.memory))
        return
    model = load_model(options.model)
    peers = ("ase", "lammps", "torchani", "mace-torch")
    report: dict[str, Any] = dict(began(options.quick, *peers))
    if "costs" in options.parts:
        report["costs"] = costs(model, options.quick)
    if "scaling" in options.parts:
        report["scaling"] = scaling(model, options.model, options.quick)
    kind = "periodic-speed" if "costs" in report else "periodic-scaling"
    base = write(report, markdown(report), options.output, kind)
    if "scaling" in report:
        with loglog(base.with_suffix(".png")) as axes:
            rows = report["scaling"]["rows"]
            seconds = [r["seconds"] for r in rows]
            axes.loglog([r["atoms"] for r in rows], seconds, "o-", label="window")
            axes.set_xlabel("atoms")
            axes.set_ylabel("s")


if __name__ == "__main__":
    main()
