"""Crystals and fluids: rollouts of periodic models beside LAMMPS, from the same starts.

    python bench/periodic.py make runs-periodic                  # reference runs: some ten minutes
    python bench/periodic.py compare runs-periodic --output bench/results

`make` equilibrates every state with LAMMPS and runs it on at constant energy. `compare` predicts
the same runs from the same positions and velocities and prints what the two agree in, beside what
is asked and, for chance, the two halves of the reference. bench/README.md says what each figure is.
Needs LAMMPS (lammps_md.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.build import bulk
from lammps_md import AVOGADRO, LATTICE, LENNARD_JONES, MASS, TERSOFF, Box
from report import HERE, began, heading, write
from scipy.signal import find_peaks

from mdtrajnet_fast import Trajectory, load_model, simulate, thermal_velocities
from mdtrajnet_fast.analysis.matter import diffusion, kinetic_energies, radial_distribution
from mdtrajnet_fast.analysis.observables import vibrational_density_of_states
from mdtrajnet_fast.md.window import method_of, stride_of
from mdtrajnet_fast.mechanics import centre_of_mass

RESOLUTION = 30.0  # cm^-1, of densities of states
HIGHEST = 2000.0  # cm^-1, beyond all phonons of diamond
PEAKS = 3  # of the radial distribution
ENERGIES = 400  # frames of a run whose energies tell its drift


@dataclass(frozen=True)
class State:
    """What is run: a model's name, how LAMMPS computes it, and for how long.

    atoms: a crystal, of which a fluid is molten first. kelvin: K. pair: LAMMPS's commands. melt: K.
    step, spacing, equilibration, duration: fs.
    """

    model: str
    atoms: ase.Atoms
    kelvin: float
    pair: Sequence[str]
    step: float
    spacing: float
    equilibration: float
    duration: float
    melt: float | None = None

    def starts(self, seed: int) -> ase.Atoms:
        """Positions and velocities in equilibrium."""
        atoms = self.atoms.copy()
        thermal_velocities(atoms, 2 * self.kelvin, seed)  # half of it becomes potential energy
        for kelvin in (self.melt, self.kelvin) if self.melt else (self.kelvin,):
            box = Box(atoms, self.pair)
            atoms = box.equilibrated(kelvin, self.equilibration, self.step, seed + 1)
            box.close()
        return atoms


def diamond(cells: int) -> ase.Atoms:
    """A cube of so many conventional cells, of 8 atoms each, along each edge."""
    return bulk("C", "diamond", a=LATTICE, cubic=True).repeat(cells)


def argon(density: float, cells: int = 6) -> ase.Atoms:
    """Argon of so many g/cm^3 on the lattice of its crystal, 4 cells^3 atoms."""
    edge = (4 * MASS / (density * AVOGADRO)) ** (1 / 3)
    return bulk("Ar", "fcc", a=edge, cubic=True).repeat(cells)


def _diamond(kelvin: float, cells: int, duration: float) -> State:
    return State("diamond", diamond(cells), kelvin, TERSOFF, 0.5, 6.0, 3000.0, duration)


def _argon(kelvin: float, density: float) -> State:
    crystal = argon(density)
    return State(
        "argon", crystal, kelvin, LENNARD_JONES, 5.0, 50.0, 30_000.0, 100_000.0, melt=300.0
    )


STATES = {
    "diamond, 512 atoms, 300 K": _diamond(300.0, 4, 19_998.0),
    "diamond, 512 atoms, 1,000 K": _diamond(1000.0, 4, 19_998.0),
    "diamond, 4,096 atoms, 300 K": _diamond(300.0, 8, 4998.0),
    "argon, 864 atoms, 94.4 K, 1.374 g/cm3": _argon(94.4, 1.374),
    "argon, 864 atoms, 250 K, 0.3 g/cm3": _argon(250.0, 0.3),
}


class Figure(NamedTuple):
    """Something that two runs agree in: its value, shown so, what is asked, and whether it is."""

    value: float
    shown: str
    asked: str = ""
    met: bool | None = None


def judged(value: float, shown: str, asked: str, met: bool) -> Figure:
    """A figure in Python's own numbers, which JSON has."""
    return Figure(float(value), shown, asked, bool(met))


# ---- What runs agree in. `one` is judged against `reference`.


def half(run: Trajectory, which: int) -> Trajectory:
    """The first (0) or the second half (1) of a run."""
    middle = len(run) // 2
    return run[:middle] if which == 0 else run[middle:]


def peaks(run: Trajectory, farthest: float = 4.0) -> np.ndarray:
    """Positions (Å) and heights of the first peaks of g(r): [PEAKS, 2]."""
    r, g = radial_distribution(run[::10], farthest=farthest, width=0.02)
    found, _ = find_peaks(g, prominence=0.2, distance=10)
    tops = []
    for k in found[:PEAKS]:  # a Gaussian through the top of each
        near = slice(k - 2, k + 3)
        a, b, c = np.polyfit(r[near] - r[k], np.log(np.maximum(g[near], 1e-3)), 2)
        tops.append((r[k] - b / (2 * a), np.exp(c - b**2 / (4 * a))))
    if len(tops) < PEAKS:
        raise ValueError(f"g(r) has {len(tops)} peaks up to {farthest:g} Å, expected {PEAKS}")
    return np.array(tops)


def densities_of_states(run: Trajectory) -> np.ndarray:
    """Power spectrum of the velocities up to HIGHEST."""
    masses = run.atoms.get_masses()
    v = run.velocities - centre_of_mass(run.velocities, masses)[:, None]
    dt = run.times[1] - run.times[0]
    how = {"resolution": RESOLUTION, "max_wavenumber": HIGHEST}
    return vibrational_density_of_states(v, masses, dt, **how)[1]


def drift(run: Trajectory, pair: Sequence[str]) -> float:
    """Slope of LAMMPS's total energy along a run, meV per atom and ps."""
    some = run[:: max(1, len(run) // ENERGIES)]
    box = Box(run.atoms, pair)
    energies = box.energies(some)
    box.close()
    slope = np.polyfit(some.times - some.times[0], energies, 1)[0]  # eV/fs
    return float(1e6 * slope / len(run.atoms))


def solid(one: Trajectory, reference: Trajectory) -> dict[str, Figure]:
    """Peaks of g(r) and density of states."""
    moved, other = peaks(one), peaks(reference)
    ratio = abs(moved / other - 1).max(0)
    r = float(np.corrcoef(densities_of_states(one), densities_of_states(reference))[0, 1])
    return {
        "g(r), positions of 3 peaks": judged(ratio[0], f"{ratio[0]:.2%}", "1 %", ratio[0] <= 0.01),
        "g(r), heights of 3 peaks": judged(ratio[1], f"{ratio[1]:.1%}", "5 %", ratio[1] <= 0.05),
        "density of states, r": judged(r, f"{r:.3f}", "0.95", r >= 0.95),
    }


def fluid(one: Trajectory, reference: Trajectory) -> dict[str, Figure]:
    """g(r) everywhere and diffusion."""
    curves = [radial_distribution(run[::4]).g for run in (one, reference)]
    off = float(abs(curves[0] - curves[1]).max())
    ours, theirs = diffusion(one), diffusion(reference)
    ratio = ours.coefficient / theirs.coefficient
    error = ratio * np.hypot(ours.error / ours.coefficient, theirs.error / theirs.coefficient)
    said = f"{ratio:.3f} ± {error:.3f} ({1e5 * 0.1 * theirs.coefficient:.3g}e-5 cm²/s)"
    return {
        "g(r), largest deviation": judged(off, f"{off:.3f}", "0.05", off <= 0.05),
        "diffusion coefficient, ratio": judged(ratio, said, "10 %", abs(ratio - 1) <= 0.1),
    }


def agreement(
    one: Trajectory, reference: Trajectory, pair: Sequence[str], kind: str
) -> dict[str, Figure]:
    """All figures of a run beside its reference."""
    found = (solid if kind == "diamond" else fluid)(one, reference)
    kelvin = [kinetic_energies(run).temperature for run in (one, reference)]
    ratio = kelvin[0] / kelvin[1]
    shown = f"{ratio:.3f} ({kelvin[1]:.1f} K)"
    found["mean temperature, ratio"] = judged(ratio, shown, "3 %", abs(ratio - 1) <= 0.03)
    slope = drift(one, pair)
    shown = f"{slope:+.4f}"
    found["drift, meV per atom and ps"] = judged(slope, shown, "0.1", abs(slope) <= 0.1)
    return found


# ---- Commands.


def _file(folder: Path, name: str) -> Path:
    """Where the reference run of a state is kept."""
    return folder / ("".join(c if c.isalnum() else "-" for c in name) + ".h5")


def _chosen(names: Sequence[str] | None) -> Iterator[tuple[str, State]]:
    for name, state in STATES.items():
        if not names or any(part in name for part in names):
            yield name, state


def make(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, state in _chosen(options.states):
        file = _file(options.folder, name)
        if file.exists():
            print(f"{file} is there already")
            continue
        start = state.starts(options.seed)
        box = Box(start, state.pair)
        run = box.run(state.duration, state.step, state.spacing)
        box.close()
        run.write(file)
        print(f"{file}: {len(run)} frames, {kinetic_energies(run).temperature:.1f} K", flush=True)


def markdown(report: dict[str, Any]) -> str:
    """A table for each state."""
    out = [*heading(report)]
    for name, state in report["states"].items():
        trust = "; ".join(state["warnings"]) or "no warnings"
        out += [
            f"**{name}**, {state['duration'] / 1000:g} ps with {state['model']}, windows of "
            f"{state['window']:g} fs. Trust summary: {trust}.",
            "",
            "| | ours | asked | | halves of the reference |",
            "|---|---|---|---|---|",
        ]
        for what, (_, shown, asked, met) in state["figures"].items():
            halves = state["halves"].get(what, ("", ""))[1]
            out.append(f"| {what} | {shown} | {asked} | {'yes' if met else 'no'} | {halves} |")
        out.append("")
    return "\n".join(out)


def compare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    models = {"diamond": options.diamond, "argon": options.argon}
    report: dict[str, Any] = began(False, "ase", "lammps") | {"states": {}}
    for name, state in _chosen(options.states):
        reference = Trajectory.read(_file(options.folder, name))
        model = load_model(models[state.model])
        window = stride_of(model, method_of(model, None), None)
        run = simulate(reference[0], window, duration=reference.times[-1], model=model)
        assert isinstance(run, Trajectory) and run.trust is not None
        how: tuple[Sequence[str], str] = (state.pair, state.model)
        figures = agreement(run, reference, *how)
        halves = agreement(half(reference, 1), half(reference, 0), *how)
        halves["drift, meV per atom and ps"] = Figure(
            slope := drift(reference, state.pair), f"{slope:+.4f} (its own)"
        )
        report["states"][name] = {
            "model": model.name,
            "window": window,
            "duration": float(reference.times[-1]),
            "figures": figures,
            "halves": halves,
            "warnings": list(run.trust.warnings),
        }
        for what, figure in figures.items():
            print(f"{name}: {what} {figure.shown} (asked {figure.asked})", flush=True)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            run.write(_file(options.keep, name))
    write(report, markdown(report), options.output, "periodic")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="make | compare")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(run=run)
        sub.add_argument("folder", type=Path, help="of the reference runs")
        sub.add_argument("--states", nargs="+", help="only those whose names have one of these")
        return sub

    sub = command("make", make, "reference runs with LAMMPS")
    sub.add_argument("--seed", type=int, default=1)
    sub = command("compare", compare, "predict the same runs and compare")
    sub.add_argument("--diamond", default="diamond", help="model of diamond")
    sub.add_argument("--argon", default="argon", help="model of argon")
    sub.add_argument("--output", type=Path, default=HERE / "results", help="default: %(default)s")
    sub.add_argument("--keep", type=Path, help="folder for the predicted runs")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
