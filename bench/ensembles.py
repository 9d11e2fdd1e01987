"""Whether windows with a thermostat sample the canonical ensemble.

    python bench/ensembles.py --output ensembles    # ten molecules, half an hour of one core
    python bench/ensembles.py --model diamond --molecules diamond --output ensembles-diamond

Every molecule, or a cell of the crystal, is run in replicas at one temperature with a thermostat of
`simulate`, and what the canonical ensemble says is compared with what comes out: the mean
temperature, the variance of the kinetic energy, the temperature of every element and of every
normal mode, each with its statistical error (of the means of blocks, which are longer than the
thermostat's memory), the virials of the modes, which show what the window does to the positions,
and whether total energy less heat stays.
bench/README.md says what each column is, docs/study.md what came out. `--output` keeps the tables
(molecules.csv, elements.csv, modes.csv, ensembles.md), written anew after every molecule.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from ase.units import kB
from numpy.typing import NDArray
from periodic import diamond
from tqdm import tqdm

from mdtrajnet_fast import MDtrajNet, Trajectory, load_model, read_structure, thermal_velocities
from mdtrajnet_fast.analysis.normal_modes import (
    NormalModes,
    mode_freedoms,
    mode_temperatures,
    turned,
)
from mdtrajnet_fast.analysis.observables import WAVENUMBER
from mdtrajnet_fast.md.rollout import rollout
from mdtrajnet_fast.md.thermostats import THERMOSTATS, Baths, thermostat_of
from mdtrajnet_fast.md.window import method_of, stride_of
from mdtrajnet_fast.mechanics import (
    atomic_degrees_of_freedom,
    degrees_of_freedom,
    kinetic_temperature,
    temperature_per_element,
)
from mdtrajnet_fast.model.window_potentials import ENDS, ENERGY, MIDDLE
from mdtrajnet_fast.system import System
from mdtrajnet_fast.train.compare_runs import modes_near

Array = NDArray[np.float64]

# Molecules of the training set, those of the reference runs of bench/rollouts.py.
MOLECULES = ("O", "CO", "CN", "C=O", "CC#N", "C=CC", "O=CO", "NC=O", "CCO", "CC(N)=O")
BLOCK_FS = 5000.0  # many times the memory of the thermostats
SPARSE = 10  # every so many frames is looked at where a frame is costly and changes slowly
_SHIFT = 1e-3  # Å, of the differences in a Hessian
LIMITS = {"mean": 0.01, "variance": 0.10, "element": 0.05, "mode": 0.05}


class Estimate(NamedTuple):
    """A mean and its standard error, arrays of the same shape."""

    mean: Array
    error: Array

    @classmethod
    def of(cls, blocks: Array) -> Estimate:
        """Of the means of independent blocks [blocks, ...]."""
        return cls(blocks.mean(0), blocks.std(0, ddof=1) / np.sqrt(len(blocks)))


class Runs(NamedTuple):
    """Replicas of a molecule. heat: [replicas, frames] eV, what the thermostat has put in."""

    runs: list[Trajectory]
    heat: Array

    def blocks(self) -> Iterator[Trajectory]:
        """Parts of all replicas."""
        for run in self.runs:
            count = max(1, round((run.times[-1] - run.times[0]) / BLOCK_FS))
            for part in np.array_split(np.arange(len(run)), count):
                yield run[part[0] : part[-1] + 1]


def system(name: str) -> ase.Atoms:
    """A molecule by its SMILES, or "diamond", 64 atoms of the crystal."""
    if name != "diamond":
        return read_structure(f"smiles:{name}")
    atoms = diamond(2)
    atoms.info["name"] = name
    return atoms


def sample(model: MDtrajNet, atoms: ase.Atoms, options: argparse.Namespace) -> Runs:
    """Runs from these positions, frames at the ends of windows, without what equilibrates them."""
    replicas, stride = options.replicas, stride_of(model, method_of(model, None), None)
    many = []
    for k in range(replicas):
        one = atoms.copy()
        thermal_velocities(one, options.temperature, options.seed + k)
        many.append(one)
    bath = thermostat_of(options.thermostat, options.temperature)
    windows = rollout(
        model,
        System.from_atoms(many),
        np.concatenate([one.get_momenta() for one in many]),
        dt=stride,
        duration=options.equilibration + options.duration,
        baths=Baths([bath] * replicas, many, [options.seed + k for k in range(replicas)]),
    )
    name = f"{atoms.info['name']}, ps"
    times, positions, momenta, heat = [], [], [], []
    total = (options.equilibration + options.duration) / 1000
    with tqdm(total=round(total), desc=name, disable=None) as bar:
        for frames in windows:
            if frames.end < options.equilibration or not len(frames.times):
                continue
            times.append(frames.times[-1])
            positions.append(frames.positions[-1])
            momenta.append(frames.momenta[-1])
            assert frames.heat is not None
            heat.append(frames.heat[-1])
            bar.update(int(frames.end / 1000) - bar.n)
    shape = (len(times), replicas, len(atoms), 3)
    x, p = (np.reshape(values, shape) for values in (positions, momenta))
    runs = [Trajectory(atoms, times, x[:, k], p[:, k]) for k in range(replicas)]
    return Runs(runs, np.transpose(heat))


def energies_and_virials(
    model: MDtrajNet, run: Trajectory, modes: NormalModes
) -> tuple[Array, Array]:
    """Of every frame: the model's potential energy [frames] eV, and q dV/dq of every mode, as a
    temperature [frames, modes] K.

    Its mean is the kinetic temperature of a bound motion (R. Clausius, Phil. Mag. 40, 122 (1870)),
    of a vibration that stays near the geometry of the modes; a window that brings positions and
    velocities to different temperatures shows in it.
    """
    masses = run.atoms.get_masses()
    energies, virials = [], []
    for begin in range(0, len(run), 500):
        part = run[begin : begin + 500]
        graph = model.graph(System.from_atoms(list(part)))
        each, slopes = model.predictor().slopes(graph, ENERGY)
        shape = (len(part), len(masses))
        energies.append(each.double().cpu().numpy().reshape(shape).sum(1))
        x, turns = turned(part, modes)
        slope = slopes.double().cpu().numpy().reshape(*shape, 3) @ turns
        q = np.einsum("kax,a,fax->fk", modes.vectors, np.sqrt(masses), x - modes.positions)
        g = np.einsum("kax,a,fax->fk", modes.vectors, 1 / np.sqrt(masses), slope)
        virials.append(q * g / kB)
    return np.concatenate(energies), np.concatenate(virials)


def shadow_ratios(model: MDtrajNet, atoms: ase.Atoms, modes: NormalModes) -> Array:
    """Kinetic over potential energy of every mode in the energy that a window conserves: [modes].

    Of the window linearised at the geometry of the modes, mode by mode, at its ends: a map with
    equal diagonal elements keeps m12 v^2 - m21 x^2, so that <v^2> / <x^2> is -m21 / m12, beside
    the square of the frequency. 1 is exact; velocity Verlet has 1 - (omega h)^2 / 4.
    """
    many, numbers = [], 3 * len(atoms)
    moved = _SHIFT * np.eye(numbers).reshape(numbers, -1, 3)
    for positions in (*(modes.positions + moved), *(modes.positions - moved)):
        one = atoms.copy()
        one.positions = positions
        many.append(one)
    graph = model.graph(System.from_atoms(many))
    root = np.repeat(np.sqrt(atoms.get_masses()), 3)
    flat = modes.vectors.reshape(len(modes.vectors), -1)

    def squares(role: int) -> Array:
        _, slopes = model.predictor().slopes(graph, role)
        ahead, behind = slopes.double().cpu().numpy().reshape(2, numbers, numbers)
        hessian = (ahead - behind) / (2 * _SHIFT) / np.outer(root, root)
        return np.einsum("ki,ij,kj->k", flat, hessian, flat) * ase.units.fs**2

    h = stride_of(model, method_of(model, None), None)
    flight = np.array([[1, h / 2], [0, 1]])

    def kick(strength: float) -> Array:
        return np.array([[1, 0], [-strength, 1]])

    ratios = []
    for ends, middle, true in zip(*map(squares, (ENDS, MIDDLE, ENERGY)), strict=True):
        half = flight @ kick(h / 6 * ends)
        window = kick(h / 6 * ends) @ flight @ kick(2 * h / 3 * middle) @ half
        ratios.append(-window[1, 0] / window[0, 1] / true)
    return np.array(ratios)


def compared(model: MDtrajNet, name: str, options: argparse.Namespace) -> dict[str, list[dict]]:
    """Rows of the three tables for one molecule."""
    atoms = system(name)
    modes = modes_near(model, atoms)
    atoms.positions = modes.positions
    found = sample(model, atoms, options)
    kelvin, freedom = options.temperature, degrees_of_freedom(atoms)
    masses, numbers = atoms.get_masses(), atoms.numbers
    blocks = list(found.blocks())
    sparse = [run[::SPARSE] for run in found.runs]

    kinetic = [kinetic_temperature(block.velocities, masses, freedom) for block in blocks]
    mean = Estimate.of(np.array([one.mean() for one in kinetic]))
    of_all = np.concatenate(kinetic).mean()
    canonical = 2 * kelvin**2 / freedom
    variance = Estimate.of(np.array([((one - of_all) ** 2).mean() for one in kinetic]) / canonical)

    forms = [atomic_degrees_of_freedom(one) for run in sparse for one in run]
    elements = [
        {s: t.mean() for s, t in temperature_per_element(b.velocities, masses, numbers, f).items()}
        for f in [np.mean(forms, axis=0)]
        for b in blocks
    ]
    freedoms = np.mean([mode_freedoms(run, modes) for run in sparse], axis=0)
    vibrations = Estimate.of(np.array([mode_temperatures(b, modes) for b in blocks]) / freedoms)

    virials, drifts, spreads = [], [], []
    for run, heat in zip(sparse, found.heat[:, ::SPARSE], strict=True):
        potential, virial = energies_and_virials(model, run, modes)
        parts = np.array_split(virial, max(1, round(options.duration / BLOCK_FS)))
        virials += [part.mean(0) for part in parts]
        own = np.array([one.get_kinetic_energy() for one in run])
        kept = potential + own - heat
        slope, at_zero = np.polyfit(run.times, kept, 1)
        drifts.append(1e6 * slope / len(atoms))
        spreads.append(np.std(kept - slope * run.times - at_zero))
    virial, drift = Estimate.of(np.array(virials)), Estimate.of(np.array(drifts))

    about = {"molecule": name}
    rows: dict[str, list[dict]] = {"molecules": [], "elements": [], "modes": []}
    rows["molecules"].append(
        about
        | {"freedom": freedom, "blocks": len(blocks), "temperature_K": mean.mean}
        | {"error_K": mean.error, "variance": variance.mean, "variance_error": variance.error}
        | {"drift_meV_atom_ps": drift.mean, "drift_error": drift.error}
        | {"spread_eV": np.mean(spreads)}
    )
    for symbol in elements[0]:
        one = Estimate.of(np.array([row[symbol] for row in elements]))
        rows["elements"].append(
            about | {"element": symbol, "temperature_K": one.mean, "error_K": one.error}
        )
    phases = 2 * np.pi * modes.wavenumbers / WAVENUMBER
    phases *= stride_of(model, method_of(model, None), None)
    ratios = shadow_ratios(model, atoms, modes)
    columns = (modes.wavenumbers, phases, ratios, freedoms, *vibrations, *virial)
    names = ("wavenumber_cm-1", "omega_h", "shadow_ratio", "freedom", "temperature_K", "error_K")
    names += ("virial_K", "virial_error_K")
    rows["modes"] += [
        about | dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)
    ]
    return rows


def off(rows: list[dict], kelvin: float, limit: float) -> str:
    """How many temperatures are beyond the limit, and how many of these by more than chance."""
    relative = np.array([row["temperature_K"] for row in rows]) / kelvin - 1
    errors = np.array([row["error_K"] for row in rows]) / kelvin
    beyond = abs(relative) > limit
    sure = beyond & (abs(relative) > 2 * errors)
    z = relative / errors
    return (
        f"{beyond.sum()} of {len(rows)} are off by more than {limit:.0%}, {sure.sum()} of these by "
        f"more than two of their errors (median {np.median(errors):.1%}); mean "
        f"{relative.mean():+.2%}, root mean square deviation {np.sqrt(np.mean(z**2)):.2f} errors"
    )


def markdown(title: str, tables: dict[str, list[dict]], kelvin: float) -> str:
    """What came out, in a table of molecules and a line on elements and one on modes."""
    lines = [title, ""]
    lines.append("| | T (K) | var K | worst element | worst mode | drift |")
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in tables["molecules"]:
        worst = []
        for kind, label in (("elements", "element"), ("modes", "wavenumber_cm-1")):
            own = [one for one in tables[kind] if one["molecule"] == row["molecule"]]
            far = max(own, key=lambda one: abs(one["temperature_K"] - kelvin))
            name = far[label] if kind == "elements" else f"{far[label]:.0f} cm-1"
            by, error = far["temperature_K"] / kelvin - 1, far["error_K"] / kelvin
            worst.append(f"{name} {by:+.1%} ± {error:.1%}")
        cells = (
            f"{row['temperature_K']:.1f} ± {row['error_K']:.1f}",
            f"{row['variance']:.2f} ± {row['variance_error']:.2f}",
            *worst,
            f"{row['drift_meV_atom_ps']:+.2f} ± {row['drift_error']:.2f}",
        )
        lines.append(f"| {row['molecule']} | {' | '.join(cells)} |")
    lines += ["", f"Elements: {off(tables['elements'], kelvin, LIMITS['element'])}."]
    lines.append(f"Modes: {off(tables['modes'], kelvin, LIMITS['mode'])}.")
    lines += ["", "| omega h | modes | T | near the geometry | T / virial | linearised window |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    edges = (0.0, 0.5, 1.0, 1.6, 1.8, np.pi)
    for low, high in zip(edges, edges[1:], strict=False):
        own = [row for row in tables["modes"] if low <= row["omega_h"] < high]
        if not own:
            continue
        t, e = (np.array([row[x] for row in own]) for x in ("temperature_K", "error_K"))
        by, error = t.mean() / kelvin - 1, np.sqrt((e**2).sum()) / len(e) / kelvin
        cells = [f"{low:g} to {high:.2g}", str(len(own)), f"{by:+.1%} ± {error:.1%}"]
        lines.append(f"| {' | '.join(cells + shadow(own))} |")
    return "\n".join(lines) + "\n"


def shadow(rows: list[dict]) -> list[str]:
    """How many modes stay near their geometry; kinetic over potential temperature, found and said.

    A mode does where its virial scatters hardly more than its kinetic energy; where groups turn, it
    does not. Both scatter together, so that their ratio is known better than either; its error is
    from how modes differ from what is said.
    """
    near = [row for row in rows if row["virial_error_K"] < 1.3 * row["error_K"]]
    if len(near) < 2:
        return [str(len(near)), "", ""]
    ratios = np.array([row["temperature_K"] / row["virial_K"] for row in near])
    said = np.array([row["shadow_ratio"] for row in near])
    error = (ratios - said).std(ddof=1) / np.sqrt(len(near))
    return [str(len(near)), f"{ratios.mean():.3f} ± {error:.3f}", f"{said.mean():.3f}"]


def write(folder: Path, tables: dict[str, list[dict]], text: str) -> None:
    """The tables and the summary, over those of fewer molecules."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: _rounded(v) for k, v in row.items()} for row in rows)
    (folder / "ensembles.md").write_text(text)


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="molecules-nve")
    parser.add_argument(
        "--molecules", nargs="+", default=list(MOLECULES), metavar="NAME", help=system.__doc__
    )
    parser.add_argument("--thermostat", choices=list(THERMOSTATS), default="langevin")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--duration", type=float, default=50_000.0, help="of each replica, fs")
    parser.add_argument("--equilibration", type=float, default=2000.0, help="before that, fs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="new folder for the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.output is not None and options.output.exists():
        raise SystemExit(f"{options.output} exists and is never overwritten: choose another name")
    model = load_model(options.model)
    title = (
        f"{model.name}, {options.thermostat} at {options.temperature:g} K, {options.replicas} runs "
        f"of {options.duration / 1000:g} ps each"
    )
    tables: dict[str, list[dict]] = {"molecules": [], "elements": [], "modes": []}
    for molecule in options.molecules:
        for name, rows in compared(model, molecule, options).items():
            tables[name] += rows
        text = markdown(title, tables, options.temperature)
        if options.output is not None:
            write(options.output, tables, text)
    print(text)


if __name__ == "__main__":
    main()
