"""Whether rollouts are dynamics: spectra, temperatures and bonds beside molecular dynamics.

    python bench/rollouts.py make reference.h5 --molecules CCO CO NC=O    # or --data val.h5
    python bench/rollouts.py compare reference.h5 --model molecules-nve --output rollouts

`make` runs GFN2-xTB for 10 ps from six starts of every molecule (20 molecules of 7 to 9 atoms:
about an hour of one core); `mdtrajnet generate` with other settings serves as well. `compare`
predicts the same runs from the same first frames, all in one batch, and prints for every molecule
and in the median, pooled over the starts:

    r         correlation of the power spectra, 30 cm^-1 resolution, up to 4,000 cm^-1
    W1        Wasserstein-1 distance of the spectra, cm^-1
    T         kinetic energy relative to the reference
    T element error of the kinetic energy of the element for which it is largest
    bonds     runs that broke down, or in which a bond broke or formed
    trust     runs that the trust summary warns of; of predictions and of reference runs

Below the table, how many runs have collapsed: their spectrum correlates with that of the other
starts' reference runs less than any reference run's does; and how many of those trust warns of.

The same of one half of the reference's starts against the other half stands beside them: what the
starts alone make of a spectrum. A prediction shares its starts with the reference and can be
better than that.

    --method, --window, --energy-rate   as for `mdtrajnet simulate`
    --verlet STEP                       instead, molecular dynamics with the model's own potential
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.units import fs

from mdtrajnet_fast import MDtrajNet, Trajectory, load_model, simulate
from mdtrajnet_fast.analysis.observables import WAVENUMBER, vibrational_density_of_states
from mdtrajnet_fast.analysis.trust import trust_summary
from mdtrajnet_fast.data.generate import generate
from mdtrajnet_fast.data.records import Record, as_trajectory, load_records
from mdtrajnet_fast.md.rollout import potential_energies
from mdtrajnet_fast.md.window import METHODS, method_of, stride_of
from mdtrajnet_fast.mechanics import momenta_from_velocities
from mdtrajnet_fast.model.window_potentials import ENERGY
from mdtrajnet_fast.system import System

RESOLUTION, HIGHEST = 30.0, 4000.0  # cm^-1
COLUMNS = ("r", "W1", "T", "T element", "element", "r halves", "W1 halves", "T el halves")
COUNTS = ("runs", "bonds", "trust", "trust reference")


@dataclass(frozen=True)
class Run:
    """A predicted run beside the reference run from the same start."""

    reference: Trajectory
    predicted: Trajectory

    @property
    def whole(self) -> bool:
        """Whether the prediction did not break down."""
        return len(self.predicted) == len(self.reference)


def first(record: Record, duration: float | None) -> Trajectory:
    """The frames of a record up to a duration (fs)."""
    frames = None if duration is None else 1 + round(duration / record.frame_fs)
    return as_trajectory(record)[:frames]


def predict(
    model: MDtrajNet, references: Sequence[Trajectory], progress: bool = True, **settings
) -> list[Trajectory]:
    """Runs from the first frames of others, with frames at the same times."""
    dt, duration = references[0].times[1], references[0].times[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runs that break down are counted
        return simulate(
            [one[0] for one in references],
            dt=float(dt),
            duration=float(duration),
            model=model,
            progress=progress,
            **settings,
        )


def verlet(model: MDtrajNet, references: Sequence[Trajectory], step: float) -> list[Trajectory]:
    """Molecular dynamics with the model's potential: velocity Verlet, frames at the same times."""
    system = System.from_atoms([one[0] for one in references])
    x, v, mass = system.positions, system.velocities, system.masses[:, None] / fs**2
    predictor, times = model.predictor(), references[0].times
    every = round(float(times[1]) / step)

    def acceleration(x: np.ndarray) -> np.ndarray:
        there = System(**{**system.__dict__, "positions": x})
        graph = model.graph(there)
        if model.window_potentials is not None:
            return -predictor.slopes(graph, ENERGY)[1].numpy() / mass
        r = graph.r.requires_grad_(True)
        with torch.enable_grad():
            energy = model.potential(graph).sum()
            (slope,) = torch.autograd.grad(energy, r)
        force = torch.zeros(len(x), 3, dtype=torch.float64)
        centre = torch.repeat_interleave(torch.arange(len(x)), graph.row_ptr.diff())
        force.index_add_(0, centre, slope.double()).index_add_(0, graph.neighbor, -slope.double())
        return force.numpy() / mass

    frames = [(x, v)]
    a = acceleration(x)
    for k in range(1, every * (len(times) - 1) + 1):
        v = v + 0.5 * step * a
        x = x + step * v
        a = acceleration(x)
        v = v + 0.5 * step * a
        if k % every == 0:
            frames.append((x, v))
    positions, velocities = (np.stack(y) for y in zip(*frames, strict=True))
    momenta = momenta_from_velocities(velocities, system.masses)
    runs = []
    for one, a, b in zip(references, system.ptr, system.ptr[1:], strict=False):
        run = Trajectory(one.atoms, times, positions[:, a:b], momenta[:, a:b])
        run.trust = trust_summary(run, model.config.radial_cutoff)
        runs.append(run)
    return runs


def spectrum(run: Trajectory) -> np.ndarray:
    """Intensities on a common grid; their sum is 1."""
    _, intensity = vibrational_density_of_states(
        run.velocities,
        run.atoms.get_masses(),
        float(run.times[1] - run.times[0]),
        resolution=RESOLUTION,
        max_wavenumber=min(HIGHEST, WAVENUMBER / (2 * run.times[1])),
    )
    return intensity / intensity.sum()


def pooled(runs: Sequence[Trajectory]) -> np.ndarray:
    """The mean of their spectra."""
    return np.mean([spectrum(run) for run in runs], axis=0)


def grid(run: Trajectory) -> np.ndarray:
    """Wavenumbers (cm^-1) of :func:`spectrum`."""
    return np.linspace(0, HIGHEST, len(spectrum(run)))


def distance(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Correlation and Wasserstein-1 distance (cm^-1) of two spectra."""
    apart = abs(np.cumsum(a) - np.cumsum(b)).sum() * HIGHEST / (len(a) - 1)
    return float(np.corrcoef(a, b)[0, 1]), float(apart)


def kinetic_energies(runs: Sequence[Trajectory]) -> dict[str, float]:
    """Mean of sum m v^2 over runs, by element, and of all under "" (amu Å^2/fs^2)."""
    atoms = runs[0].atoms
    each = np.mean(
        [(atoms.get_masses()[:, None] * run.velocities**2).sum(2).mean(0) for run in runs], axis=0
    )
    parts = {chemical_symbols[z]: float(each[atoms.numbers == z].sum()) for z in set(atoms.numbers)}
    return parts | {"": float(each.sum())}


def worst_element(
    runs: Sequence[Trajectory], others: Sequence[Trajectory]
) -> tuple[float, str, float]:
    """Kinetic energy relative to other runs; the element farthest off, and how far."""
    wanted = kinetic_energies(others)
    ratios = {name: heat / wanted[name] for name, heat in kinetic_energies(runs).items()}
    overall = ratios.pop("")
    worst = max(ratios, key=lambda name: abs(ratios[name] - 1))
    return overall, worst, abs(ratios[worst] - 1)


def row(model: MDtrajNet, runs: Sequence[Run]) -> dict[str, float | str]:
    """What there is to say of one molecule."""

    def believed(run: Trajectory) -> bool:
        """Whether trust believes it, asked as in a rollout of the model."""
        potential = partial(potential_energies, model, run.atoms) if model.has_energies else None
        return trust_summary(run, model.config.radial_cutoff, potential).ok

    whole = [run for run in runs if run.whole]
    said: dict[str, float | str] = {
        "runs": len(runs),
        "bonds": sum(
            not run.whole or bool(run.predicted.trust.broken or run.predicted.trust.formed)
            for run in runs
        ),
        "trust": sum(not run.predicted.trust.ok for run in runs),
        "trust reference": sum(not believed(run.reference) for run in runs),
    }
    references = [run.reference for run in runs]
    if len(runs) > 1:
        halves = references[::2], references[1::2]
        said["r halves"], said["W1 halves"] = distance(*map(pooled, halves))
        _, _, said["T el halves"] = worst_element(*halves)
    if whole:
        predicted = [run.predicted for run in whole]
        said["r"], said["W1"] = distance(pooled(references), pooled(predicted))
        said["T"], said["element"], said["T element"] = worst_element(
            predicted, [run.reference for run in whole]
        )
    return said


def collapsed(molecules: Iterable[Sequence[Run]]) -> str:
    """How many runs have collapsed, and of how many of them trust warns."""
    like: list[tuple[float, float, bool]] = []  # others: a reference run, a prediction; believed
    for runs in molecules:
        spectra = [spectrum(run.reference) for run in runs]
        for k, run in enumerate(runs if len(runs) > 1 else ()):
            others = np.mean(spectra[:k] + spectra[k + 1 :], axis=0)
            r = distance(others, spectrum(run.predicted))[0] if run.whole else -1.0
            like.append((distance(others, spectra[k])[0], r, run.predicted.trust.ok))
    if not like:
        return "one start a molecule: whether runs have collapsed is not known"
    least = min(reference for reference, _, _ in like)
    believed = [ok for _, r, ok in like if r < least]
    return (
        f"{len(believed)} runs have collapsed (r with other starts below {least:.2f}); trust warns "
        f"of {believed.count(False)} of them"
    )


def summary(rows: Sequence[dict[str, float | str]]) -> Iterator[str]:
    """The medians and extremes over the molecules, as lines of text."""

    def values(name: str) -> np.ndarray:
        return np.array([row.get(name, np.nan) for row in rows], dtype=float)

    for name in ("r", "r halves"):
        each = values(name)
        yield f"{name:<11} median {np.nanmedian(each):.2f}, lowest {np.nanmin(each):.2f}"
    for name in ("W1", "W1 halves"):
        each = values(name)
        yield f"{name:<11} median {np.nanmedian(each):.0f} cm-1, largest {np.nanmax(each):.0f}"
    for name in ("T element", "T el halves"):
        each = values(name)
        yield f"{name:<11} median {np.nanmedian(each):.2f}, largest {np.nanmax(each):.2f}"
    low, middle, high = np.nanquantile(values("T"), [0, 0.5, 1])
    yield f"T           median {middle:.2f}, {low:.2f} to {high:.2f}"
    total = {name: int(values(name).sum()) for name in COUNTS}
    yield (
        f"of {total['runs']} runs {total['bonds']} broke or changed a bond; trust warns of "
        f"{total['trust']}, and of {total['trust reference']} reference runs"
    )


def print_table(rows: dict[str, dict[str, float | str]]) -> None:
    """One line a molecule."""
    names = (*COLUMNS, *COUNTS[1:])
    print(f"{'':<16}" + " ".join(f"{name:>11}" for name in names))
    for molecule, said in rows.items():
        cells = []
        for name in names:
            value = said.get(name, "")
            digits = 0 if name.startswith("W1") else 2
            cells.append(f"{value:11.{digits}f}" if isinstance(value, float) else f"{value:>11}")
        print(f"{molecule:<16}" + " ".join(cells))


def plot(path: Path, molecules: dict[str, list[Run]], title: str) -> None:
    """The spectra of every molecule, predicted and reference."""
    from matplotlib.figure import Figure

    columns = 4
    lines = -(-len(molecules) // columns)
    figure = Figure(figsize=(4 * columns, 2.2 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (name, runs) in zip(axes, molecules.items(), strict=False):
        w = grid(runs[0].reference)
        for label, kind, colour in (
            ("reference", "reference", "#000000"),
            ("predicted", "predicted", "#D55E00"),
        ):
            some = [getattr(run, kind) for run in runs if run.whole]
            if some:
                axis.plot(w, pooled(some), color=colour, linewidth=0.8, label=label)
        axis.set_title(name, fontsize=9)
        axis.set_yticks([])
    for axis in axes[len(molecules) :]:
        axis.remove()
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.supxlabel("wavenumber (cm$^{-1}$)")
    figure.savefig(path, dpi=110)


def make(options: argparse.Namespace) -> None:
    smiles = list(options.molecules)
    if options.data:
        smiles += sorted({r.smiles for r in load_records(options.data) if r.smiles is not None})
    print(
        generate(
            [f"smiles:{one}" for one in smiles],
            options.output,
            trajectories=options.starts,
            temperatures_K=[options.temperature],
            conformers=2,
            step_fs=0.5,
            frame_fs=2.0,
            duration_fs=options.duration,
            seed=options.seed,
            processes=options.processes,
            max_energy_std_eV=0.05,
            split="reference",
        )
    )


def compare(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    model = load_model(options.model)
    records = load_records(options.reference, molecules=options.molecules)
    references = [first(record, options.duration) for record in records]
    if options.spacing is not None:
        step = round(options.spacing / records[0].frame_fs)
        references = [reference[::step] for reference in references]
    method = method_of(model, options.method)
    settings = {
        "method": method,
        "window": options.window,
        "energy_rate": options.energy_rate,
    }
    if options.verlet:
        title = f"velocity Verlet with the potential of {model.name}, {options.verlet:g} fs"
        predicted = verlet(model, references, options.verlet)
    else:
        title = f"{model.name}, {method} windows of {stride_of(model, method, options.window):g} fs"
        predicted = predict(model, references, **settings)
    molecules: dict[str, list[Run]] = {}
    for record, *pair in zip(records, references, predicted, strict=True):
        molecules.setdefault(record.smiles or record.molecule, []).append(Run(*pair))
    rows = {name: row(model, runs) for name, runs in molecules.items()}
    duration = float(references[0].times[-1])
    print(f"{title}, {duration / 1000:g} ps from {len(records)} starts")
    print_table(rows)
    print("\n".join(summary(list(rows.values()))))
    print(collapsed(molecules.values()))
    if options.output is not None:
        options.output.mkdir(parents=True)
        with (options.output / "rollouts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["molecule", *COLUMNS, *COUNTS])
            writer.writeheader()
            writer.writerows({"molecule": name, **said} for name, said in rows.items())
        plot(options.output / "rollouts.png", molecules, title)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="make | compare")
    sub = commands.add_parser("make", help="reference runs with GFN2-xTB")
    sub.set_defaults(run=make)
    sub.add_argument("output", type=Path, help="new file, or one to continue")
    sub.add_argument("--molecules", nargs="+", default=[], metavar="SMILES")
    sub.add_argument("--data", nargs="+", type=Path, help="files all of whose molecules to take")
    sub.add_argument("--starts", type=int, default=6)
    sub.add_argument("--temperature", type=float, default=300.0, help="K")
    sub.add_argument("--duration", type=float, default=10_000.0, help="fs")
    sub.add_argument("--seed", type=int, default=101)
    sub.add_argument("--processes", type=int, default=1)
    sub = commands.add_parser("compare", help="predict the same runs and compare")
    sub.set_defaults(run=compare)
    sub.add_argument("reference", nargs="+", type=Path)
    sub.add_argument("--model", default="molecules-nve")
    sub.add_argument("--window", type=float, help="fs")
    sub.add_argument("--method", choices=METHODS)
    sub.add_argument("--energy-rate", type=float, help="1/fs")
    sub.add_argument("--verlet", type=float, metavar="STEP", help="fs")
    sub.add_argument("--duration", type=float, help="fs (default: the reference's)")
    sub.add_argument("--spacing", type=float, help="of frames, fs (default: the reference's)")
    sub.add_argument("--molecules", nargs="+", help="only groups of these names")
    sub.add_argument("--output", type=Path, help="new folder for table and picture")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
